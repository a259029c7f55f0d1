"""The gradient of a step is bounded over all parameters of a client together, alone and in a batch of clients."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fftmoe.client.training import clip_gradients
from fftmoe.rng import generator

SHAPES = ((5, 7), (3,), ())


def parameters(seed: int, scale: float, clients: int | None = None) -> list[nn.Parameter]:
    """Parameters with random gradients; the last one has none."""
    draws = generator(seed, "gradients")
    front = () if clients is None else (clients,)
    made = [nn.Parameter(torch.zeros((*front, *shape))) for shape in (*SHAPES, (2,))]
    for p in made[:-1]:
        p.grad = scale * torch.randn(p.shape, generator=draws)
    return made


def gradients(of: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad.clone() for p in of if p.grad is not None]


def norm(found: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float((g.double() ** 2).sum()) for g in found))


scales = st.sampled_from([0.0, 1e-30, 1e-3, 0.5, 3.0, 1e25, 1e37])  # squares of the last two overflow float32


@given(seed=st.integers(0, 9), scale=scales, most=st.floats(1e-4, 1e4))
def test_a_gradient_keeps_its_direction_and_gets_at_most_the_stated_norm(seed: int, scale: float, most: float):
    own = parameters(seed, scale)
    before = gradients(own)
    clip_gradients(own, most)
    after, size = gradients(own), norm(before)
    if size <= most:
        assert all(map(torch.equal, after, before))
    else:
        assert norm(after) == pytest.approx(most, rel=1e-5)
        for new, old in zip(after, before, strict=True):
            torch.testing.assert_close(new.double(), old.double() * (most / size), rtol=1e-5, atol=0.0)


@given(seed=st.integers(0, 9), scale=scales)
def test_each_client_of_a_batch_has_the_gradient_that_it_has_alone(seed: int, scale: float):
    together = parameters(seed, scale, clients=3)
    for p in together[:-1]:
        assert p.grad is not None
        p.grad[1] *= 1e-3  # one of the clients is within the bound, where the others are not
    alone = [[nn.Parameter(p.detach()[c]) for p in together] for c in range(3)]
    for c, own in enumerate(alone):
        for p, whole in zip(own, together, strict=True):
            p.grad = None if whole.grad is None else whole.grad[c].clone()
        clip_gradients(own, 0.7)
    clip_gradients(together, 0.7, stacked=True)
    for c, own in enumerate(alone):
        for p, whole in zip(own[:-1], together[:-1], strict=True):
            assert p.grad is not None
            assert whole.grad is not None
            torch.testing.assert_close(whole.grad[c], p.grad, rtol=1e-6, atol=0.0)


def test_the_bound_is_that_of_torch():
    own, other = parameters(4, 2.0), parameters(4, 2.0)
    clip_gradients(own, 0.3)
    nn.utils.clip_grad_norm_(other, 0.3)
    for found, expected in zip(gradients(own), gradients(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0.0)  # torch adds 1e-6 to the norm


def test_without_any_gradient_nothing_is_clipped():
    untouched = nn.Parameter(torch.zeros(3))
    clip_gradients([untouched], 1.0)
    assert untouched.grad is None
