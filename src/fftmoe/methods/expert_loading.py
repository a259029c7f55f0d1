"""Loads experts and shared updates into the model: those of a client, or the whole pool."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fftmoe import adapter
from fftmoe.records import Tensors, names


def parameters_of(block: int, moe: adapter.SparseMoe) -> dict[str, nn.Parameter]:
    """Return the parameters of a block by name: experts, router, and the shared expert if there is one."""
    own = dict(zip(names.expert_tensors(block), (moe.router.weight, moe.up, moe.down), strict=True))
    if moe.shared_up is not None and moe.shared_down is not None:
        own |= zip(names.shared_tensors(block), (moe.shared_up, moe.shared_down), strict=True)
    return own


def load_experts(model: Any, tensors: Tensors, blocks: Iterable[int], top_k: int) -> dict[str, nn.Parameter]:
    """Replace the experts in the model; blocks other than `blocks` get none.

    Args:
        tensors: experts by name; for C clients with the same budget, each tensor has C in front.

    Returns:
        the model's new parameters of `blocks`, under the same names.
    """
    held, parameters = set(blocks), {}
    for block, moe in adapter.blocks(model).items():
        if block in held:
            router, up, down = (tensors[name] for name in names.expert_tensors(block))
            moe.load_experts(router, up, down, top_k)
            if moe.shared_up is not None:
                moe.load_shared(*(tensors[name] for name in names.shared_tensors(block)))
            parameters |= parameters_of(block, moe)
        else:
            expert_dim, dim = moe.up.shape[-2:]
            no_experts, no_rows = torch.zeros(0, expert_dim, dim), torch.zeros(0, dim)
            moe.load_experts(no_rows, no_experts, no_experts, top_k)
            if moe.shared_up is not None:  # without experts it is never computed; this frees its memory
                moe.load_shared(no_rows, no_rows)
    return parameters


def load_projections(model: Any, tensors: Tensors) -> dict[str, nn.Parameter]:
    """Copy the shared low-rank updates into the model; those that are not in `tensors` become zero.

    Returns:
        the parameters of the copied ones, by name.
    """
    for update, low_rank in adapter.low_ranks(model).items():
        a, b = names.shared_factors(update)
        if a in tensors:
            low_rank.load(tensors[a], tensors[b])
        else:
            low_rank.load(*(torch.zeros(p.shape[-2:]) for p in (low_rank.low_a, low_rank.low_b)))
    return {name: p for name, p in adapter.shared_projections(model).items() if name in tensors}
