"""Makes the model of a recipe: the frozen backbone with a fresh adapter."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from fftmoe import adapter
from fftmoe.adapter import MoeAdapterConfig
from fftmoe.adapter.low_rank import target_names
from fftmoe.backbones import (
    attach_adapter,
    enable_checkpointing,
    find_device,
    find_precision,
    head_parameters,
    load_backbone,
    place,
)
from fftmoe.backbones.lora import lora_config
from fftmoe.config import Recipe
from fftmoe.errors import InputError
from fftmoe.head import make_head
from fftmoe.methods.registry import Capabilities
from fftmoe.rng import derive
from fftmoe.setup.method import adapted_blocks, method_class, pool_size, stated_shape
from fftmoe.setup.plugins import Plugins


def build_model(recipe: Recipe, label_names: Sequence[str], plugins: Plugins | None = None) -> Any:
    """Load the frozen backbone and attach a fresh adapter of the kind that the method trains.

    The model is the same in every process, because its random weights follow from the recipe's seed.

    Args:
        recipe: the checked recipe.
        label_names: names of the labels; empty for a task without labels.
        plugins: the registered plug-ins.

    Raises:
        InputError: the backbone cannot be read, or cannot carry this adapter.
    """
    capabilities = method_class(recipe, plugins).capabilities
    if capabilities.changes_backbone and recipe.backbone.quantization != "none":
        raise InputError(
            f"method {recipe.method} adds the clients' updates to the frozen weights, and quantized weights cannot be "
            f"changed (backbone.quantization={recipe.backbone.quantization}); set backbone.quantization to none, or "
            "use another method"
        )
    device = find_device(recipe.engine.device)
    precision = find_precision(recipe.engine.precision, device)
    # Weights to which a method adds are not rounded to fewer bits.
    kept = torch.float32 if capabilities.changes_backbone else precision
    backbone = load_bare_backbone(recipe, label_names, kept)
    blocks = tuple(adapted_blocks(recipe, backbone))
    model = _attach(recipe, capabilities, backbone, blocks, pool_size(recipe, backbone, plugins))
    for moe in adapter.blocks(model).values():
        moe.check_computable(device, precision)
    if recipe.engine.checkpointing:
        enable_checkpointing(model)
    return place(model, device, precision)


def load_bare_backbone(recipe: Recipe, label_names: Sequence[str], multiplies_in: torch.dtype = torch.float32) -> Any:
    """Return the frozen backbone of a recipe with a new head and without an adapter; `multiplies_in` as for
    `load_backbone`.

    Raises:
        InputError: it cannot be read.
    """
    return load_backbone(
        recipe.backbone.model,
        task=recipe.backbone.task,
        num_labels=len(label_names) or None,
        pooling=recipe.backbone.pooling,
        label_names=label_names or None,
        seed=derive(recipe.seed, "head"),
        head_bias=0.0 if recipe.head is None else make_head(recipe.head.kind).init_bias(len(label_names)),
        fourier_features=recipe.fourier_features,
        quantization=recipe.backbone.quantization,
        device=find_device(recipe.engine.device),
        multiplies_in=multiplies_in,
    )


def _attach(recipe: Recipe, capabilities: Capabilities, backbone: Any, blocks: Sequence[int], pool: int) -> Any:
    """Attach LoRA or experts. With `head-only`, the experts keep their initial weights and add nothing."""
    if capabilities.trains == "low-rank":
        targets = target_names(backbone, blocks, recipe.lora.targets)
        return attach_adapter(backbone, lora_config(1, recipe.lora.scale, targets))
    _check_memory(recipe, backbone, len(blocks), pool)
    settings, only_experts = recipe.adapter, capabilities.whole_pool
    config = MoeAdapterConfig(
        num_experts=pool,
        expert_dim=settings.expert_dim,
        shared_dim=0 if only_experts else settings.shared_dim,
        shared_rank=0 if only_experts else settings.shared_rank,
        shared_targets=settings.shared_targets,
        top_k=1,  # replaced by the top_k of each client's budget
        blocks=list(blocks),
        target_modules=settings.target_modules,
        activation=settings.activation,
        gates=settings.gates,
        scale=settings.scale,
        compute=settings.compute,
        seed=derive(recipe.seed, "adapter"),
    )
    return attach_adapter(backbone, config)


def _check_memory(recipe: Recipe, backbone: Any, num_blocks: int, pool: int) -> None:
    """Check that this machine can hold the pool, because a site receives its recipe from the server."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    pool_bytes = 4 * num_blocks * stated_shape(recipe, backbone).block_parameters(pool)
    if pool_bytes > memory:
        raise InputError(
            f"the experts of adapter.num_experts={recipe.adapter.num_experts} and "
            f"adapter.expert_dim={recipe.adapter.expert_dim} take {pool_bytes / 2**30:.4g} GiB, and this machine has "
            f"{memory / 2**30:.4g} GiB of memory; lower one of the two values, or adapt fewer blocks"
        )


def check_head(recipe: Recipe, model: Any) -> None:
    """Check that feature statistics determine all parameters of the model's head.

    Raises:
        InputError: the recipe has a closed-form head, but the model's head is not one linear layer with a bias.
    """
    found = sorted(head_parameters(model))
    if recipe.closed_form and found != ["bias", "weight"]:
        raise InputError(
            "a closed-form head must be one linear layer with a bias, but this model's head has the parameters "
            f"{', '.join(found) or 'none'}; set backbone.pooling to mean, or head.kind to averaged"
        )
