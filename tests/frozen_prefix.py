"""Models of which the first blocks are frozen, for the tests of what these blocks compute."""

import torch
from torch import Tensor, nn

from fftmoe.adapter import MoeAdapterConfig, blocks
from fftmoe.backbones import attach_adapter
from models import NUM_BLOCKS

BLOCK = 2  # the first adapted one
PLENTY = 10**9  # bytes that a cache may take


def adapted(backbone: nn.Module, block: int = BLOCK) -> nn.Module:
    """Adapters in the blocks from `block` on, with weights that act."""
    config = MoeAdapterConfig(num_experts=5, expert_dim=4, top_k=2, blocks=f"last-{NUM_BLOCKS - block}")
    model = attach_adapter(backbone, config)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for moe in blocks(model).values():
            for parameter in moe.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 5)
    return model


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().sum(), [p for p in model.parameters() if p.requires_grad]))
