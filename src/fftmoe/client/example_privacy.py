"""Training from which no single example can be told: DP-SGD (Abadi et al., arXiv 1607.00133), on the client.

In each step every example is drawn by itself, its gradient is clipped over all parameters together, and the sum of the
clipped gradients gets noise. Draws and noise are the operating system's (`fftmoe.methods.noise`). Examples go through
the model one at a time, which any method, adapter and auxiliary loss allows.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fftmoe.methods.noise import Draw, Uniform, normal, os_uniform
from fftmoe.methods.private import clipped
from fftmoe.records import Training

LossOf = Callable[[Tensor], Tensor]
"""Rows int64 [B] to what is minimised, a scalar."""


def sampling_rate(batch_size: int, num_examples: int) -> float:
    """q, with which an example is in a step, so that `batch_size` are on average."""
    return min(1.0, batch_size / num_examples)


def poisson_batches(indices: np.ndarray, batch_size: int, steps: int, uniform: Uniform = os_uniform) -> list[Tensor]:
    """The rows of every step, int64: each example with probability q, whatever becomes of the others."""
    rate = sampling_rate(batch_size, len(indices))
    return [torch.from_numpy(indices[uniform(len(indices)) <= rate]) for _ in range(steps)]


def noisy_backward(
    loss_of: LossOf, rows: Tensor, parameters: Sequence[nn.Parameter], training: Training, draw: Draw = normal
) -> None:
    """Sets the gradient of a step: clipped for each example, summed, with noise, over the expected batch size.

    The divisor is `batch_size`, however many examples were drawn: their number is not to be told.
    """
    clip, noise = training.example_clip, training.example_noise
    assert clip is not None
    totals = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for row in rows:
        found = torch.autograd.grad(loss_of(row[None]), parameters, allow_unused=True)
        gradients = {str(place): g.double() for place, g in enumerate(found) if g is not None}
        for place, part in clipped(gradients, clip).items():
            totals[int(place)] += part
    for parameter, total in zip(parameters, totals, strict=True):
        noisy = total + noise * clip * draw(total.shape).to(total.device)
        parameter.grad = (noisy / training.batch_size).to(parameter.dtype)
