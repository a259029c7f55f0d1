"""Randomness that nobody can play again: uniform and normal numbers from the operating system's entropy.

All other randomness here follows from the recipe's seed (`fftmoe.rng`), which is public. Noise that hides a client
must not, and a cohort that is secret must not either.
"""

import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Uniform = Callable[[int], np.ndarray]
"""So many numbers, uniform in (0, 1], float64."""

Draw = Callable[[Sequence[int]], Tensor]
"""Independent standard normal numbers of this shape, float64."""

AT_ONCE = 2**18  # numbers, so that large tensors take no more memory than this


def os_uniform(count: int) -> np.ndarray:
    """Multiples of 2^-53 in (0, 1] from `os.urandom`, float64 [count]."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def normal(shape: Sequence[int], uniform: Uniform = os_uniform) -> Tensor:
    """Standard normal numbers, float64: the sum of four by Box and Muller, halved.

    The last bits of a single number from Box-Muller can tell what it was added to (Mironov, CCS 2012; Jin et al.,
    arXiv 2112.05307). Of the sum of four, each from uniform numbers of its own, whoever wants to find out has to solve
    for all of them (Holohan and Braghin, arXiv 2107.10138, whose remedy Opacus' secure mode takes as well).
    """
    count = math.prod(shape)
    parts = [_halved_sum(min(AT_ONCE, count - start), uniform) for start in range(0, count, AT_ONCE)]
    return torch.from_numpy(np.concatenate([np.empty(0), *parts])).reshape(tuple(shape))


def _halved_sum(count: int, uniform: Uniform) -> np.ndarray:
    radius_4N = np.sqrt(-2 * np.log(uniform(4 * count))).reshape(4, count)
    angle_4N = 2 * np.pi * uniform(4 * count).reshape(4, count)
    return (radius_4N * np.cos(angle_4N)).sum(0) / 2
