"""The optimizers move each client of a batch as they move it by itself, given the same gradients."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from fftmoe.client.training import make_optimizers
from fftmoe.records import Training

C, STEPS = 3, 5
SHAPES = {"blocks.1.up": (7, 2, 11), "blocks.1.router": (7, 11), "head.weight": (5, 11), "head.bias": (5,)}
TRAINING = Training(batch_size=3, learning_rate=0.01, head_learning_rate=0.5, local_steps=STEPS)


def moved(start: dict[str, torch.Tensor], gradients: list[dict[str, torch.Tensor]], training: Training) -> Any:
    parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizers = make_optimizers(parameters, training)
    for step in gradients:
        for name, parameter in parameters.items():
            parameter.grad = step[name].clone()
        for optimizer in optimizers:
            optimizer.step()
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", [{}, {"weight_decay": 0.1}, {"head_optimizer": "adamw"}], ids=str)
def test_each_client_of_a_batch_moves_as_it_does_by_itself(change: dict[str, Any], dtype: torch.dtype):
    """Gradients of every size, as AdamW makes steps of one size of them, and some that are zero."""
    source = torch.Generator().manual_seed(3)
    training = dataclasses.replace(TRAINING, **change)

    def drawn(decades: float) -> dict[str, torch.Tensor]:
        sizes = {n: 10 ** (-decades * torch.rand(C, *shape, generator=source)) for n, shape in SHAPES.items()}
        values = {n: torch.randn(size.shape, generator=source) * size for n, size in sizes.items()}
        return {n: (value * (torch.rand(value.shape, generator=source) > 0.1)).to(dtype) for n, value in values.items()}

    start, gradients = drawn(0), [drawn(12) for _ in range(STEPS)]
    together = moved(start, gradients, training)
    for c in range(C):
        single = moved(
            {n: t[c] for n, t in start.items()}, [{n: g[c] for n, g in step.items()} for step in gradients], training
        )
        for name, value in single.items():
            # An optimizer computes each number by itself, but a processor may fuse a product and a sum where it takes
            # several numbers at a time, and not for the last few: a dozen operations a step, one unit each.
            bound = 12 * STEPS * torch.finfo(dtype).eps
            torch.testing.assert_close(together[name][c], value, rtol=bound, atol=bound, msg=name)
            assert float((value - start[name][c]).abs().max()) > 1000 * bound


def test_adamw_is_its_definition():
    """Decoupled weight decay (arXiv 1711.05101, algorithm 2), in float64 by hand."""
    source = torch.Generator().manual_seed(5)
    start = torch.randn(13, generator=source, dtype=torch.float64)
    gradients = [torch.randn(13, generator=source, dtype=torch.float64) for _ in range(STEPS)]
    training = dataclasses.replace(TRAINING, weight_decay=0.1)
    found = moved({"blocks.0.up": start}, [{"blocks.0.up": g} for g in gradients], training)["blocks.0.up"]
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        theta = theta - 0.01 * 0.1 * theta - 0.01 * step
    torch.testing.assert_close(found, theta, rtol=1e-12, atol=1e-12)  # gradients of order one: a few dozen roundings
