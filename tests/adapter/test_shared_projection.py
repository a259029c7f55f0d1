"""One projection with a shared low-rank update: its formula, its gradients, its dtypes and its FLOPs.

R is its rank, T the number of tokens.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fftmoe import adapter
from fftmoe.adapter.shared_update import SharedProjection
from fftmoe.backbones import (
    attach_adapter,
)
from fftmoe.methods.budget import ExpertShape
from fftmoe.rng import generator
from models import tiny_bert, tokens
from shared_updates import H, M, R, T, config, output, randomise

D_IN, D_OUT = 7, 11


@pytest.fixture
def layer() -> SharedProjection:
    """Of a frozen linear layer with a bias, with A as drawn and B that acts."""
    linear = nn.Linear(D_IN, D_OUT).requires_grad_(False)
    for parameter in linear.parameters():
        nn.init.normal_(parameter, generator=generator(5, parameter.ndim))
    layer = SharedProjection(linear, 1, "query")
    layer.set_adapter("default")
    layer.update_layer("default", R, generator(4, "a"), False)
    nn.init.normal_(layer.active()[0].low_b, generator=generator(6, "b"))
    return layer


def inputs(*shape: int) -> Tensor:
    return torch.randn(*(shape or (T,)), D_IN, generator=generator(3, "x"))


def test_it_adds_twice_b_a_x(layer: SharedProjection):
    linear, low_rank = layer.base_layer, layer.active()[0]
    a, b = low_rank.low_a.detach(), low_rank.low_b.detach()
    assert (a.shape, b.shape) == ((R, D_IN), (D_OUT, R))
    rows = [linear.weight @ x + linear.bias + 2 * (b @ (a @ x)) for x in inputs()]
    torch.testing.assert_close(layer(inputs()).detach(), torch.stack(rows))
    assert layer(inputs(2, 3)).shape == (2, 3, D_OUT)
    merged = nn.functional.linear(inputs(), linear.weight + 2 * b @ a, linear.bias)
    torch.testing.assert_close(layer(inputs()).detach(), merged)


def test_gradients_reach_only_a_and_b_and_equal_those_by_hand(layer: SharedProjection):
    low_rank, x = layer.double().active()[0], inputs().double()
    y = layer(x)
    g = torch.randn(y.shape, generator=generator(7, "g"), dtype=torch.float64)
    (y * g).sum().backward()
    a, b = low_rank.low_a, low_rank.low_b
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(b.grad, 2 * g.T @ (x @ a.detach().T))
    torch.testing.assert_close(a.grad, 2 * b.detach().T @ g.T @ x)
    assert layer.base_layer.weight.grad is None
    assert layer.base_layer.bias.grad is None
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "moe_shared.default.low_a",
        "moe_shared.default.low_b",
    }


def test_untrained_it_adds_exactly_nothing_and_b_learns_first(layer: SharedProjection):
    low_rank = layer.active()[0]
    nn.init.zeros_(low_rank.low_b)
    y = layer(inputs())
    assert torch.equal(y, layer.base_layer(inputs()))
    y.square().sum().backward()
    assert low_rank.low_a.grad is not None
    assert low_rank.low_b.grad is not None
    assert not low_rank.low_a.grad.any()
    assert (low_rank.low_b.grad != 0).all()


def test_in_bfloat16_the_output_is_the_backbones_dtype_and_the_weights_are_float32(layer: SharedProjection):
    layer.base_layer.bfloat16()
    y = layer(inputs().bfloat16())
    assert y.dtype == torch.bfloat16
    assert {p.dtype for p in layer.moe_shared.parameters()} == {torch.float32}
    y.float().square().sum().backward()
    assert layer.active()[0].low_a.grad is not None
    model = attach_adapter(tiny_bert().bfloat16(), config())
    randomise(model)
    assert {p.dtype for p in adapter.shared_projections(model).values()} == {torch.float32}
    assert output(model, tokens()).isfinite().all()


def test_flops_are_those_that_torch_counts(layer: SharedProjection):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        layer(inputs())
    with torch.inference_mode(), FlopCounterMode(display=False) as base:
        layer.base_layer(inputs())
    projections = R * (D_IN + D_OUT)
    with_it, without = ExpertShape(D_IN, H, projections=projections), ExpertShape(D_IN, H)
    added = with_it.flops_per_token(1, M) - without.flops_per_token(1, M)
    assert added == 6 * projections
    # Forward and backward take three times the forward pass.
    assert 3 * (counter.get_total_flops() - base.get_total_flops()) == T * added
