"""Describes low-rank updates of linear layers: which layers have one, how many parameters it has, and where it starts.

A layer with the frozen weight W computes `y = W x + s B A x`, with A [r, d_in] and B [d_out, r] (LoRA, arXiv
2106.09685). Two parts of the package have such updates and take these rules from here:

- the adapter's shared updates (`shared_update.py`) are layers of our own, because one PEFT adapter must hold them
  together with the experts, and because one layer must be able to hold the weights of several clients;
- the LoRA baselines (`fftmoe.backbones.lora`, `fftmoe.methods.lora`) use PEFT's implementation of LoRA.

A layer's path is its name in the model, such as `encoder.layer.1.attention.self.query`.
"""

import math
import re
from collections.abc import Collection, Iterable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fftmoe.errors import InputError, did_you_mean

Linear = nn.Linear | Conv1D  # GPT-2's Conv1D is a linear layer whose weight is transposed

# Which linear layers of a block are adapted: a regular expression that is searched for in the path.
TARGETS = {
    # The last four hold the keys as well.
    "query-value": r"(?:^|\.)(?:query|value|query_proj|value_proj|q_proj|v_proj|q_lin|v_lin|q|v"
    r"|query_key_value|qkv_proj|Wqkv|c_attn)$",
    "attention": r"att(n|ention)",
    "feed-forward": r"^(?!.*att(n|ention))",
    "all-linear": "",
}
_IN_BLOCK = r"(?:^|\.)(\d+)\.(.+)"


def block_of_module(path: str) -> int:
    """Return the index of the block that a module lies in: the first number in its path, as for PEFT.

    Raises:
        InputError: it lies in no block.
    """
    return _split_path(path)[0]


def within_block(path: str) -> str:
    """Return the part of a module's path below its block, such as `attention.self.query`.

    Raises:
        InputError: it lies in no block.
    """
    return _split_path(path)[1]


def _split_path(path: str) -> tuple[int, str]:
    match = re.search(_IN_BLOCK, path)
    if match is None:
        raise InputError(f"module {path!r} is in no numbered block; name other target modules, or the blocks to adapt")
    return int(match[1]), match[2]


def linear_layers(model: nn.Module, blocks: Iterable[int], targets: str) -> dict[str, Linear]:
    """Return the linear layers of these blocks that `targets` names, by path in the order of the model.

    A layer that an adapter already wraps is found under the path of its wrapper, so that another adapter can join it.
    Layers that belong to an adapter are left out.

    Args:
        model: with or without adapters.
        blocks: block indices.
        targets: "query-value" (as in the paper of LoRA), "attention", "feed-forward" or "all-linear".
    """
    wanted, adapters = set(blocks), _paths_of_adapters(model)
    return {
        path: linear
        for path, module in model.named_modules()
        if (linear := linear_layer(module)) is not None
        if re.search(_IN_BLOCK, path) and block_of_module(path) in wanted
        if re.search(TARGETS[targets], path) and not path.startswith(adapters)
    }


def linear_layer(module: nn.Module | BaseTunerLayer) -> Linear | None:
    """Return the linear layer that a module is or that it wraps; None for any other module."""
    inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return inner if isinstance(inner, Linear) else None


def linear_sizes(linear: Linear) -> tuple[int, int]:
    """Return (d_in, d_out) of a linear layer."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def _paths_of_adapters(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the paths of all modules that adapters added, and of all wrapped linear layers."""
    paths: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            paths += [f"{path}.{part}." for part in module.adapter_layer_names]
            paths += [f"{path}.base_layer"] if linear_layer(module) is not None else []
    return tuple(paths)


def target_names(model: nn.Module, blocks: Collection[int], targets: str = "query-value") -> list[str]:
    """Return the paths of the layers to adapt with LoRA; arguments as for `linear_layers`.

    Raises:
        InputError: `targets` is unknown, or the blocks have no such layer.
    """
    if targets not in TARGETS:
        raise InputError(f"unknown lora.targets {targets!r}{did_you_mean(targets, TARGETS)}")
    paths = list(linear_layers(model, blocks, targets))
    if not paths:
        raise InputError(
            f"blocks {sorted(blocks)} of this model hold no linear {targets} modules for LoRA to adapt; "
            "choose other blocks or another value of lora.targets"
        )
    return paths


def parameters_per_rank(sizes: Iterable[tuple[int, int]], factors: str = "AB") -> int:
    """Return how many parameters the updates of these layers have at rank 1.

    Args:
        sizes: (d_in, d_out) of each layer.
        factors: which of the factors "A" and "B" are counted.
    """
    return sum((d_in if "A" in factors else 0) + (d_out if "B" in factors else 0) for d_in, d_out in sizes)


def initial_a(rank: int, d_in: int, source: torch.Generator) -> Tensor:
    """Return A as PEFT draws it, kaiming_uniform(a=sqrt(5)): uniform within 1 / sqrt(d_in); float32 [rank, d_in]."""
    return _uniform(rank, d_in, source) / math.sqrt(d_in)


def initial_shared_a(rank: int, d_in: int, source: torch.Generator) -> Tensor:
    """Return A of a shared update. It multiplies where `initial_a` divides, so the last bits differ;
    runs depend on both.
    """
    return _uniform(rank, d_in, source) * d_in**-0.5


def _uniform(rank: int, d_in: int, source: torch.Generator) -> Tensor:
    """Draw numbers uniform within 1; float32 [rank, d_in]."""
    return 2 * torch.rand(rank, d_in, generator=source) - 1


def initial_b(rank: int, d_out: int) -> Tensor:
    """Return B before training, zeros [d_out, rank]: an untrained update adds exactly nothing."""
    return torch.zeros(d_out, rank)


def truncate(tensor: Tensor, factor: str, rank: int) -> Tensor:
    """Return the first `rank` rows of an A, or the first `rank` columns of a B."""
    return (tensor[:rank] if factor == "A" else tensor[:, :rank]).contiguous()
