"""The fast paths compared with the loop, which is the specification: outputs and every gradient."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from fftmoe.adapter import compute as computes
from fftmoe.errors import InputError
from mixture_bounds import mixture_bounds


class Problem(NamedTuple):
    x_TD: Tensor
    gates_TK: Tensor
    expert_ids_TK: Tensor
    up_MHD: Tensor
    down_MHD: Tensor


def problem(
    seed: int,
    *,
    tokens: int = 11,
    dim: int = 7,
    experts: int = 5,
    top_k: int = 2,
    expert_dim: int = 3,
    dtype: torch.dtype = torch.float64,
    used: int | None = None,
) -> Problem:
    """A random problem whose tokens choose among the first `used` experts only."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()

    ids = torch.rand(tokens, used or experts, generator=g).topk(top_k).indices
    return Problem(
        normal(tokens, dim),
        normal(tokens, top_k),
        ids,
        normal(experts, expert_dim, dim),
        normal(experts, expert_dim, dim),
    )


def value_and_gradients(name: str, p: Problem, activation: str = "gelu") -> list[Tensor]:
    y_TD = computes.COMPUTES[name](*p, computes.ACTIVATIONS[activation])
    weights_TD = torch.linspace(-1, 1, y_TD.numel(), dtype=y_TD.dtype).view_as(y_TD)
    inputs = [p.x_TD, p.gates_TK, p.up_MHD, p.down_MHD]
    return [y_TD, *torch.autograd.grad((y_TD * weights_TD).sum(), inputs)]


def assert_same(name: str, p: Problem, activation: str = "gelu") -> None:
    expected = value_and_gradients("loop", p, activation)
    for actual, wanted, bound in zip(
        value_and_gradients(name, p, activation), expected, mixture_bounds(*p), strict=True
    ):
        assert ((actual.double() - wanted.double()).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bound_lets_no_fault_of_a_thousandth_pass(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    def faulty(x_TD: Tensor, gates_TK: Tensor, *rest: Any) -> Tensor:
        wrong = torch.ones(len(x_TD), 1, dtype=dtype)
        wrong[3] = 1.001  # one token's gates
        return computes.COMPUTES["wide"](x_TD, wrong * gates_TK, *rest)

    monkeypatch.setitem(computes.COMPUTES, "faulty", faulty)
    p = problem(0, dtype=dtype)
    assert_same("wide", p)
    with pytest.raises(AssertionError):
        assert_same("faulty", p)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize(("top_k", "used"), [(1, None), (2, None), (2, 3), (5, None), (1, 1)])
def test_wide_equals_loop_in_float64(top_k: int, used: int | None, activation: str):
    p = problem(0, top_k=top_k, used=used)
    assert_same("wide", p, activation)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize(("top_k", "used"), [(1, None), (2, None), (2, 3), (5, None), (1, 1)])
def test_grouped_equals_loop_in_float32(top_k: int, used: int | None, activation: str):
    p = problem(0, top_k=top_k, used=used, dim=20, expert_dim=4, dtype=torch.float32)
    assert_same("grouped", p, activation)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 13]), st.integers(1, 7), st.data())
def test_all_three_agree_on_any_shape(seed: int, tokens: int, experts: int, data: st.DataObject):
    used = data.draw(st.integers(1, experts))
    top_k = data.draw(st.integers(1, used))
    p = problem(seed, tokens=tokens, experts=experts, top_k=top_k, used=used, dim=12, expert_dim=8, dtype=torch.float32)
    for name in ("wide", "grouped"):
        assert_same(name, p)


def test_top_k_of_all_experts_is_the_dense_mixture():
    p = problem(1, top_k=5)
    experts = [torch.nn.functional.gelu(p.x_TD @ up.T) @ down for up, down in zip(p.up_MHD, p.down_MHD, strict=True)]
    weights_TM = torch.zeros(11, 5, dtype=torch.float64).scatter(1, p.expert_ids_TK, p.gates_TK)
    dense = sum(weights_TM[:, m, None] * experts[m] for m in range(5))
    torch.testing.assert_close(value_and_gradients("loop", p)[0], dense)


@pytest.mark.parametrize("name", ["loop", "wide", "grouped"])
def test_an_expert_nobody_chose_gets_exactly_zero_gradient(name: str):
    p = problem(2, used=3, dim=20, expert_dim=4, dtype=torch.float32)
    *_, up_grad, down_grad = value_and_gradients(name, p)
    assert torch.equal(up_grad[3:], torch.zeros_like(up_grad[3:]))
    assert torch.equal(down_grad[3:], torch.zeros_like(down_grad[3:]))
    assert bool(up_grad[:3].abs().sum() > 0)


@pytest.mark.parametrize("name", ["wide", "grouped"])
def test_a_run_repeats_bit_for_bit(name: str):
    p = problem(3, dim=20, expert_dim=4, dtype=torch.float32)
    runs = [value_and_gradients(name, p) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_wide_takes_any_shape_in_any_dtype(dtype: torch.dtype):
    p = problem(5, dtype=dtype)
    assert_same("wide", p)  # the loop rounds each token's sum after every expert, wide once


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("experts", "expert_dim", "top_k", "device", "dtype", "expected"),
    [
        (4, 16, 2, CPU, torch.float32, "wide"),  # M*H = 64 = 2 * (16 + 16)
        (5, 16, 2, CPU, torch.float32, "grouped"),
        (5, 64, 4, CPU, torch.float32, "wide"),  # 320 = 4 * (64 + 16)
        (6, 64, 4, CPU, torch.float32, "grouped"),
        (8, 16, 2, CPU, torch.bfloat16, "wide"),  # 128 = 2 * (16 + 48)
        (9, 16, 2, CPU, torch.bfloat16, "grouped"),
        (66, 16, 2, CUDA, torch.float32, "wide"),  # 1056 = 2 * (16 + 512)
        (67, 16, 2, CUDA, torch.float32, "grouped"),
        (4, 16, 2, torch.device("mps"), torch.float32, "wide"),  # as on a CPU, where nothing was measured
        (5, 16, 2, torch.device("mps"), torch.float32, "grouped"),
    ],
)
def test_auto_follows_the_measured_rule(
    experts: int, expert_dim: int, top_k: int, device: torch.device, dtype: torch.dtype, expected: str
):
    assert computes.choose("auto", experts, expert_dim, top_k, 384, 2048, device, dtype) == expected


@pytest.mark.parametrize(("num_tokens", "expected"), [(16, "wide"), (36, "wide"), (37, "grouped"), (2048, "grouped")])
def test_few_tokens_are_not_worth_sorting(num_tokens: int, expected: str):
    """At M=16, H=16, K=2 the two were measured equal at about 32 tokens."""
    assert computes.choose("auto", 16, 16, 2, 384, num_tokens, CPU, torch.float32) == expected


@pytest.mark.parametrize(
    ("expert_dim", "dim", "dtype"),
    [(6, 16, torch.float32), (16, 18, torch.float32), (12, 16, torch.bfloat16), (16, 16, torch.float64)],
)
def test_auto_never_chooses_a_shape_that_grouped_cannot_take(expert_dim: int, dim: int, dtype: torch.dtype):
    assert computes.choose("auto", 64, expert_dim, 1, dim, 2048, CPU, dtype) == "wide"
    with pytest.raises(InputError, match=f"expert_dim={expert_dim} and model dim={dim}"):
        computes.choose("grouped", 64, expert_dim, 1, dim, 2048, CPU, dtype)


def test_unknown_compute_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'grouped'"):
        computes.choose("groupped", 4, 16, 1, 16, 2048, CPU, torch.float32)


def test_a_name_that_is_not_similar_to_any_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown compute 'padded'; valid: auto, grouped, loop, wide"):
        computes.choose("padded", 4, 16, 1, 16, 2048, CPU, torch.float32)


def test_grouped_takes_what_its_rule_allows_in_bfloat16():
    p = problem(4, dim=16, expert_dim=8, dtype=torch.bfloat16)
    assert value_and_gradients("grouped", p)[0].dtype == torch.bfloat16


def traced(name: str) -> Tensor:
    """Forward and backward of tensors that have no values: what asks the host for one raises."""
    with FakeTensorMode():
        x, gates = (torch.empty(67, width, dtype=torch.bfloat16, requires_grad=True) for width in (32, 2))
        up, down = (torch.empty(11, 16, 32, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        expert_ids = torch.empty(67, 2, dtype=torch.int64)
        y = computes.COMPUTES[name](x, gates, expert_ids, up, down, computes.ACTIVATIONS["gelu"])
        y.sum().backward()
    return y


@pytest.mark.parametrize("name", ["wide", "grouped"])
def test_what_auto_chooses_between_waits_for_no_value(name: str):
    """On a GPU such a wait would stop the queue of kernels; no GPU is needed to see it."""
    assert traced(name).shape == (67, 32)
    with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
        traced("loop")
