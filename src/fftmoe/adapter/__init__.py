"""Holds the sparse mixture-of-experts adapter, with its auxiliary losses and its shared low-rank updates.

Nothing here knows clients, rounds or recipes, and every package above may import it. Importing it registers the adapter
with PEFT: `peft.get_peft_model(model, MoeAdapterConfig(...))` then attaches it, and `peft.PeftModel.from_pretrained`
loads it.
"""

from fftmoe.adapter.config import MoeAdapterConfig
from fftmoe.adapter.families import block_dims
from fftmoe.adapter.losses import (
    balance_loss,
    expert_load,
    mean_probs,
    router_z_loss,
    skew,
    target_load,
)
from fftmoe.adapter.model import MoeModel, blocks
from fftmoe.adapter.moe import SparseMoe
from fftmoe.adapter.recording import record_routing
from fftmoe.adapter.register import register
from fftmoe.adapter.routing import Router, Routing
from fftmoe.adapter.shared_update import low_ranks, projection_parameters, shared_projections

__all__ = [
    "MoeAdapterConfig",
    "MoeModel",
    "Router",
    "Routing",
    "SparseMoe",
    "balance_loss",
    "block_dims",
    "blocks",
    "expert_load",
    "low_ranks",
    "mean_probs",
    "projection_parameters",
    "record_routing",
    "router_z_loss",
    "shared_projections",
    "skew",
    "target_load",
]

register(MoeAdapterConfig, MoeModel)
