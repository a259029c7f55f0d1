"""Several clients in one computation compared with one client at a time: outputs and every gradient."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.adapter.compute import ACTIVATIONS, COMPUTES
from fftmoe.adapter.stacked import stacked
from mixture_bounds import mixture_bounds


class Problem(NamedTuple):
    x_CTD: Tensor
    gates_CTK: Tensor
    expert_ids_CTK: Tensor
    up_CMHD: Tensor
    down_CMHD: Tensor

    @property
    def differentiable(self) -> list[Tensor]:
        return [self.x_CTD, self.gates_CTK, self.up_CMHD, self.down_CMHD]


def problem(
    seed: int, *, clients: int = 3, tokens: int = 11, experts: int = 5, top_k: int = 2, used: int | None = None
) -> Problem:
    """A random problem in float32, of sizes that grouped takes (H = 8, D = 20)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(clients, *shape, generator=g).requires_grad_()

    ids = torch.rand(clients, tokens, used or experts, generator=g).topk(top_k).indices
    return Problem(normal(tokens, 20), normal(tokens, top_k), ids, normal(experts, 8, 20), normal(experts, 8, 20))


def with_gradients(y_CTD: Tensor, p: Problem) -> list[Tensor]:
    weights_CTD = torch.linspace(-1, 1, y_CTD.numel()).view_as(y_CTD)
    return [y_CTD, *torch.autograd.grad((y_CTD * weights_CTD).sum(), p.differentiable)]


def side_by_side(name: str, p: Problem, max_groups: int = 1023) -> list[Tensor]:
    return with_gradients(stacked(name, *p, ACTIVATIONS["gelu"], max_groups=max_groups), p)


def one_by_one(name: str, p: Problem) -> list[Tensor]:
    single = [COMPUTES[name](*client, ACTIVATIONS["gelu"]) for client in zip(*p, strict=True)]
    return with_gradients(torch.stack(single), p)


def assert_same(found: list[Tensor], expected: list[Tensor], p: Problem) -> None:
    bounds = map(torch.stack, zip(*[mixture_bounds(*client) for client in zip(*p, strict=True)], strict=True))
    for one, other, bound in zip(found, expected, bounds, strict=True):
        assert ((one.double() - other.double()).abs() <= bound).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([1, 13]), st.integers(1, 5), st.data())
def test_stacked_clients_compute_what_single_clients_compute(
    seed: int, clients: int, tokens: int, experts: int, data: st.DataObject
):
    used = data.draw(st.integers(1, experts))
    top_k = data.draw(st.integers(1, used))
    p = problem(seed, clients=clients, tokens=tokens, experts=experts, top_k=top_k, used=used)
    for name in ("loop", "grouped", "wide"):
        assert_same(side_by_side(name, p), one_by_one(name, p), p)


@pytest.mark.parametrize("max_groups", [1, 5, 14])  # one, one and two clients of 5 experts at a time
def test_clients_beyond_the_limit_of_groups_go_into_further_products(max_groups: int):
    p = problem(0)
    assert_same(side_by_side("grouped", p, max_groups), side_by_side("grouped", p), p)


@pytest.mark.parametrize("max_groups", [1, 5, 14])
def test_no_product_has_more_groups_than_the_limit(max_groups: int, monkeypatch: pytest.MonkeyPatch):
    groups: list[int] = []

    def counting(
        x_TD: Tensor, gates_TK: Tensor, expert_ids_TK: Tensor, up_MHD: Tensor, *_: object, **__: object
    ) -> Tensor:
        assert int(expert_ids_TK.max()) < len(up_MHD)
        groups.append(len(up_MHD))
        return x_TD

    monkeypatch.setitem(COMPUTES, "grouped", counting)
    p = problem(0)
    # A single client is never divided.
    assert torch.equal(stacked("grouped", *p, ACTIVATIONS["gelu"], max_groups=max_groups), p.x_CTD)
    assert groups == {1: [5, 5, 5], 5: [5, 5, 5], 14: [10, 5]}[max_groups]


@pytest.mark.parametrize("name", ["loop", "wide", "grouped"])
def test_one_clients_tokens_never_reach_anothers_experts(name: str):
    p = problem(1)
    y_CTD = stacked(name, *p, ACTIVATIONS["gelu"])
    x_grad, _, up_grad, down_grad = torch.autograd.grad(y_CTD[1].sum(), p.differentiable)
    for gradient in (x_grad, up_grad, down_grad):
        assert torch.equal(gradient[[0, 2]], torch.zeros_like(gradient[[0, 2]]))
        assert bool(gradient[1].abs().sum() > 0)


@pytest.mark.parametrize("name", ["loop", "wide", "grouped"])
def test_a_client_with_a_smaller_top_k_fills_up_with_gates_of_zero(name: str):
    p = problem(2, top_k=3)
    fewer_CTK = p.gates_CTK.detach().clone()
    fewer_CTK[1, :, 2:] = 0
    y_CTD = stacked(name, *p._replace(gates_CTK=fewer_CTK), ACTIVATIONS["gelu"])
    arguments = (p.x_CTD[1], p.gates_CTK[1, :, :2], p.expert_ids_CTK[1, :, :2], p.up_CMHD[1], p.down_CMHD[1])
    single_TD = COMPUTES[name](*arguments, ACTIVATIONS["gelu"])
    assert ((y_CTD[1] - single_TD).abs().double() <= mixture_bounds(*arguments)[0]).all()
