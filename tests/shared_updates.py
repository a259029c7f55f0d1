"""Helpers for the tests of shared low-rank updates: adapters with an effect, and a model's outputs and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import logits
from fftmoe.records import Budget, Training
from fftmoe.rng import generator
from models import FAMILIES, FUSED

R, M, H, T = 2, 5, 3, 13  # rank, experts, their hidden units, tokens
BLOCKS = (1, 2)  # of the tiny BERT's three
SMALL, LARGE = Budget("small", 1, 2, BLOCKS), Budget("large", 2, M, BLOCKS)
NARROW = Budget("narrow", 1, 2, (2,))
BUDGETS = {0: SMALL, 1: LARGE, 2: SMALL, 3: NARROW}
TRAINING = Training(batch_size=7, learning_rate=0.01, head_learning_rate=0.5, local_steps=2)
# Families whose query and value are separate layers.
SEPARATE = sorted(set(FAMILIES) - FUSED)
every_family = pytest.mark.parametrize("family", SEPARATE)


def config(**changes: Any) -> MoeAdapterConfig:
    arguments: dict[str, Any] = {"num_experts": M, "expert_dim": H, "top_k": 2, "shared_rank": R}
    return MoeAdapterConfig(**(arguments | changes))


def of_block(model: nn.Module, block: int) -> list[nn.Parameter]:
    return [p for name, p in adapter.shared_projections(model).items() if name.startswith(f"shared.{block}.")]


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
