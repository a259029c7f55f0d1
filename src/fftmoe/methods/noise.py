"""Draws uniform and normal numbers that nobody can reproduce, from the operating system's entropy.

All other randomness follows from the recipe's seed (`fftmoe.rng`), which is public. Noise that hides a client must not
follow from it, and neither must the choice of a secret cohort. A normal number is

    g = 1/2 sum_{i <= 4} sqrt(-2 ln u_i) cos(2 pi v_i),   u, v uniform     (Holohan and Braghin, arXiv 2107.10138)
"""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Uniform = Callable[[int], np.ndarray]
"""A function from a count to that many numbers, uniform in (0, 1], float64."""

Draw = Callable[[Sequence[int]], Tensor]
"""A function from a shape to independent standard normal numbers, float64."""

NUMBERS_AT_ONCE = 2**18  # the most numbers that are drawn in one step, which bounds the memory for large tensors


def os_uniform(count: int) -> np.ndarray:
    """Draw multiples of 2^-53 in (0, 1] from `os.urandom`, float64 [count]."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def normal(shape: Sequence[int], uniform: Uniform = os_uniform) -> Tensor:
    """Draw standard normal numbers, float64: half the sum of four Box-Muller numbers.

    The last bits of a single Box-Muller number can reveal the value to which it was added (Mironov, CCS 2012; Jin et
    al., arXiv 2112.05307). A sum of four numbers from independent uniform numbers prevents this, because an attacker
    has to solve for all of them (Holohan and Braghin, arXiv 2107.10138). Opacus uses the same remedy in its secure
    mode.

    Args:
        shape: shape of the result.
        uniform: source of uniform numbers.
    """
    count = math.prod(shape)
    parts = [_halved_sum(min(NUMBERS_AT_ONCE, count - start), uniform) for start in range(0, count, NUMBERS_AT_ONCE)]
    return torch.from_numpy(np.concatenate([np.empty(0), *parts])).reshape(tuple(shape))


def _halved_sum(count: int, uniform: Uniform) -> np.ndarray:
    """Return half the sum of four Box-Muller numbers, float64 [count]."""
    radius_4N = np.sqrt(-2 * np.log(uniform(4 * count))).reshape(4, count)
    angle_4N = 2 * np.pi * uniform(4 * count).reshape(4, count)
    return (radius_4N * np.cos(angle_4N)).sum(0) / 2
