"""Trains so that every single example is hidden: DP-SGD (Abadi et al., arXiv 1607.00133), on the client.

In each step every example is drawn independently, its gradient is clipped over all parameters together, and the sum of
the clipped gradients gets noise. The operating system gives the randomness of draws and noise
(`fftmoe.methods.noise`). Examples go through the model one at a time, which works for every method, adapter and
auxiliary loss.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fftmoe.client.training import LossOf, MakeGradients
from fftmoe.methods.noise import Draw, Uniform, normal, os_uniform
from fftmoe.methods.private import clipped
from fftmoe.records import Training


def sampling_rate(batch_size: int, num_examples: int) -> float:
    """Return q, the probability that an example is in a step, so that a step has `batch_size` examples on average."""
    return min(1.0, batch_size / num_examples)


def poisson_batches(indices: np.ndarray, batch_size: int, steps: int, uniform: Uniform = os_uniform) -> list[Tensor]:
    """Return the rows of every step, int64: each example is drawn with probability q, independently of the others."""
    rate = sampling_rate(batch_size, len(indices))
    return [torch.from_numpy(indices[uniform(len(indices)) <= rate]) for _ in range(steps)]


def noisy_gradients(training: Training) -> MakeGradients[Tensor]:
    """Return how gradients are made in private training: `noisy_backward`, and the proximal term without noise."""

    def make(
        loss_of: LossOf[Tensor], batch: Tensor, parameters: list[nn.Parameter], pull: Callable[[], Tensor | float]
    ) -> None:
        noisy_backward(lambda row: loss_of(row).total, batch, parameters, training)
        if training.proximal:  # it depends on no example, so it needs no noise
            torch.as_tensor(pull()).backward(inputs=parameters)

    return make


def noisy_backward(
    loss_of: Callable[[Tensor], Tensor],
    rows: Tensor,
    parameters: Sequence[nn.Parameter],
    training: Training,
    draw: Draw = normal,
) -> None:
    """Set the gradient of a step: clipped for each example, summed, with noise, divided by the expected batch size.

    The divisor is `batch_size`, however many examples were drawn, because their number must not become known.

    Args:
        loss_of: rows int64 [B] to what is minimised, a scalar.
        rows: the examples of this step, int64; there may be none.
        parameters: what is trained.
        training: clip norm, noise multiplier and batch size.
        draw: standard normal numbers.
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
