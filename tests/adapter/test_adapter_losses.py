"""The auxiliary losses at their documented values, and blind to padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.adapter import (
    Router,
    Routing,
    balance_loss,
    expert_load,
    mean_probs,
    router_z_loss,
    skew,
    target_load,
)
from fftmoe.rng import generator

T, D, M, K = 11, 7, 5, 2


def route(seed: int = 0, x: Tensor | None = None, resident: Tensor | None = None) -> Routing:
    x = torch.randn(T, D, generator=generator(seed, "x")) if x is None else x
    router = Router(M, D, generator(seed)).requires_grad_(False)
    return router(x, K, resident, "detached")


def test_load_counts_routed_slots():
    ids = torch.tensor([[0, 1], [0, 2], [0, 1]])
    routing = Routing(torch.zeros(3, 4), torch.full((3, 4), 0.25), torch.ones(3, 2), ids)
    # Six slots: expert 0 three times, expert 1 twice, expert 2 once.
    torch.testing.assert_close(expert_load(routing), torch.tensor([3, 2, 1, 0]) / 6)
    torch.testing.assert_close(expert_load(routing, torch.tensor([1, 1, 0])), torch.tensor([2, 1, 1, 0]) / 4)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_load_and_mean_probs_sum_to_one(seed: int):
    routing = route(seed)
    torch.testing.assert_close(expert_load(routing).sum(), torch.tensor(1.0))
    torch.testing.assert_close(mean_probs(routing).sum(), torch.tensor(1.0))


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=13),
    st.floats(0, 3),
    st.floats(1e-3, 0.1),
)
@settings(deadline=None, max_examples=50)
def test_balance_loss_is_one_at_its_target(load: list[float], beta: float, epsilon: float):
    q = target_load(torch.tensor(load), beta, epsilon)
    torch.testing.assert_close(q.sum(), torch.tensor(1.0))
    torch.testing.assert_close(balance_loss(q, q, q), torch.tensor(1.0))


def test_target_is_uniform_at_beta_0_and_inverse_at_beta_1():
    u = torch.tensor([0.1, 0.2, 0.7])
    torch.testing.assert_close(target_load(u, 0.0, 0.01), torch.full((3,), 1 / 3))
    inverse = 1 / (u + 0.01)
    torch.testing.assert_close(target_load(u, 1.0, 0.01), inverse / inverse.sum())


def test_collapse_onto_one_expert_costs_the_number_of_experts():
    uniform = torch.full((M,), 1 / M)
    collapsed = torch.eye(M)[2]
    torch.testing.assert_close(balance_loss(collapsed, collapsed, uniform), torch.tensor(float(M)))


def test_balance_loss_trains_the_router():
    router = Router(M, D, generator(0))
    routing = router(torch.randn(T, D, generator=generator(1)), K, None, "detached")
    balance_loss(expert_load(routing), mean_probs(routing), torch.full((M,), 1 / M)).backward()
    assert not expert_load(routing).requires_grad
    assert router.weight.grad is not None
    assert bool((router.weight.grad != 0).any())


@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=T, max_size=T).filter(any))
@settings(deadline=None, max_examples=25)
def test_every_loss_ignores_padding(seed: int, keep: list[bool]):
    mask = torch.tensor(keep)
    x = torch.randn(T, D, generator=generator(seed, "x"))
    padded, trimmed = route(seed, x), route(seed, x[mask])
    torch.testing.assert_close(expert_load(padded, mask), expert_load(trimmed))
    torch.testing.assert_close(mean_probs(padded, mask.long()), mean_probs(trimmed))
    torch.testing.assert_close(router_z_loss(padded, mask), router_z_loss(trimmed))


def test_a_batch_with_nothing_but_padding_gives_finite_losses():
    routing, mask = route(), torch.zeros(T)
    assert torch.equal(expert_load(routing, mask), torch.zeros(M))
    assert float(router_z_loss(routing, mask)) == 0.0


def test_z_loss_of_zero_logits_is_log_of_the_residents_squared():
    zeros = torch.zeros(T, D)
    assert float(router_z_loss(route(x=zeros))) == pytest.approx(math.log(M) ** 2)
    resident = torch.tensor([True, False, True, True, False])
    assert float(router_z_loss(route(x=zeros, resident=resident))) == pytest.approx(math.log(3) ** 2)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_skew_lies_between_equal_and_disjoint(seed: int):
    f, u = torch.rand(2, M, generator=generator(seed)).softmax(-1)
    assert 0 <= float(skew(f, u)) <= 1
    assert float(skew(f, 3 * f)) == pytest.approx(0, abs=1e-6)


def test_skew_of_disjoint_loads_is_one_and_an_unused_pool_counts_as_uniform():
    assert float(skew(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0]))) == 1.0
    assert float(skew(torch.tensor([0.5, 0.5]), torch.zeros(2))) == 0.0
