"""Helpers for the tests of shared low-rank updates: adapters with an effect, and a model's outputs and gradients."""

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import logits
from fftmoe.rng import generator


def randomise(model: nn.Module, *, experts: bool = True) -> None:
    """Set all weights that start at zero to other values, so that every part has an effect."""
    for name, parameter in adapter.shared_projections(model).items():
        if name.endswith(".b"):
            nn.init.normal_(parameter, std=0.5, generator=generator(1, name))
    for block, moe in adapter.blocks(model).items():
        if experts and moe.num_experts:
            nn.init.normal_(moe.down, std=0.5, generator=generator(2, block))


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return logits(model, batch)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}
