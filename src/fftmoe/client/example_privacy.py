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
from fftmoe.records import Training

LossOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows int64 [B] to what is minimised and, of that, the task's part, which is to be told to nobody; both scalars."""


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
        loss, _ = loss_of(row[None])
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        for total, part in zip(totals, clipped(gradients, clip), strict=True):
            total += part
    for parameter, total in zip(parameters, totals, strict=True):
        noisy = total + noise * clip * draw(total.shape).to(total.device)
        parameter.grad = (noisy / training.batch_size).to(parameter.dtype)


def clipped(gradients: Sequence[Tensor], most: float) -> list[Tensor]:
    """Scaled together to a joint norm of at most `most`, float64; zeros where a number is infinite or none."""
    wide = [gradient.double() for gradient in gradients]
    norm = torch.stack([gradient.square().sum() for gradient in wide]).sum().sqrt()
    if not torch.isfinite(norm):
        return [torch.zeros_like(gradient) for gradient in wide]
    return [gradient * (most / norm.clamp_min(most)) for gradient in wide]
