"""The steps of private training, without chance: which rows are drawn, and what a gradient is made of."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fftmoe.client.example_privacy import noisy_backward, noisy_gradients, poisson_batches, sampling_rate
from fftmoe.client.training import Losses
from fftmoe.records import Training

TRAINING = Training(5, 0.1, 1.0, local_steps=3, example_clip=2.0, example_noise=1.5)


@pytest.mark.parametrize(("batch", "examples", "rate"), [(1, 4, 0.25), (3, 4, 0.75), (4, 4, 1.0), (5, 4, 1.0)])
def test_a_sampling_rate_is_a_probability(batch: int, examples: int, rate: float):
    assert sampling_rate(batch, examples) == rate


def test_a_row_is_drawn_whose_number_is_not_above_the_rate():
    numbers = np.array([0.2, 0.5, 0.50001, 0.9])
    drawn = poisson_batches(np.array([11, 13, 17, 19]), 2, 3, lambda count: numbers[:count])
    assert [rows.tolist() for rows in drawn] == [[11, 13]] * 3
    (everyone,) = poisson_batches(np.array([11, 13]), 2, 1, lambda count: np.ones(count))
    assert everyone.tolist() == [11, 13]


def ones(shape: Sequence[int]) -> Tensor:
    return torch.ones(tuple(shape), dtype=torch.float64)


def slope(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_a_gradient_is_the_clipped_sum_and_noise_over_the_batch_size():
    """Each example has the gradient (3, 4), whose norm is 5, so it is scaled to the norm 2; the noise is 1.5 * 2."""
    used, unused = slope(1.0, 1.0), slope(1.0)
    loss_of = lambda rows: (used * torch.tensor([3.0, 4.0])).sum() * len(rows)  # noqa: E731
    noisy_backward(loss_of, torch.tensor([4, 6]), [used, unused], TRAINING, ones)
    assert used.grad is not None
    assert unused.grad is not None
    torch.testing.assert_close(used.grad, torch.tensor([2 * 1.2 + 3, 2 * 1.6 + 3]) / 5)
    torch.testing.assert_close(unused.grad, torch.tensor([3.0]) / 5)
    noisy_backward(loss_of, torch.tensor([], dtype=torch.int64), [used], TRAINING, ones)
    torch.testing.assert_close(used.grad, torch.tensor([3.0, 3.0]) / 5)


def test_the_proximal_term_is_added_where_there_is_one():
    """The noise is taken out, so that only the term is left of a step without examples."""
    quiet = replace(TRAINING, example_noise=0.0)

    def gradient(proximal: float) -> list[float]:
        parameter = slope(1.0, 2.0)
        make = noisy_gradients(replace(quiet, proximal=proximal))
        pull = lambda: proximal / 2 * (parameter**2).sum()  # noqa: E731
        loss_of = lambda rows: Losses(parameter.sum(), parameter.sum().detach())  # noqa: E731
        assert make(loss_of, torch.tensor([], dtype=torch.int64), [parameter], pull) is None
        assert parameter.grad is not None
        return parameter.grad.tolist()

    assert gradient(0.0) == [0.0, 0.0]
    assert gradient(0.5) == [0.5, 1.0]
