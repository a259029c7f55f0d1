"""Makes updates private: only numbers that are summed over clients depend on how a client's data used its experts."""

import math

import torch
from torch import Tensor

from fftmoe.methods.private import clipped
from fftmoe.records import ClientPlan, ClientUpdate, names


def concealed(update: ClientUpdate, plan: ClientPlan) -> ClientUpdate:
    """Return the update as a private round sends it: a row for every resident expert, zeros for untrained ones.

    The joint norm is at most the plan's `clip_norm`, the client counts as one example, and the update has no routing
    statistics and no loss. The length of its message depends only on the plan.
    """
    tensors = {name: _all_residents(name, tensor, update, plan) for name, tensor in update.tensors.items()}
    most = math.inf if plan.training.clip_norm is None else plan.training.clip_norm
    return ClientUpdate(
        round=update.round,
        client_id=update.client_id,
        num_examples=1,
        tensors=clipped(tensors, most),
        experts=plan.experts,
    )


def _all_residents(name: str, tensor: Tensor, update: ClientUpdate, plan: ClientPlan) -> Tensor:
    """Return the tensor with a row for each resident expert; a tensor without experts as it is."""
    block = names.block_of(name)
    if block is None:
        return tensor
    rows = [plan.experts[block].index(expert) for expert in update.experts[block]]
    full = torch.zeros(len(plan.experts[block]), *tensor.shape[1:], dtype=tensor.dtype)
    full[rows] = tensor
    return full
