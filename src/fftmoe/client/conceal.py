"""An update in which nothing but numbers to be summed depends on what the client's data made of its experts."""

import math

import torch
from torch import Tensor

from fftmoe.methods.aggregate import block_of
from fftmoe.methods.private import clipped
from fftmoe.records import ClientPlan, ClientUpdate


def concealed(update: ClientUpdate, plan: ClientPlan) -> ClientUpdate:
    """The update as a private round has it: all experts that the client holds, zeros where it trained nothing.

    Its joint norm is at most what the plan allows, it counts as one whatever its number of examples, and it says
    nothing of routing or of its loss. How long its message is follows from the plan alone.
    """
    tensors = {name: _dense(name, tensor, update, plan) for name, tensor in update.tensors.items()}
    most = math.inf if plan.training.clip_norm is None else plan.training.clip_norm
    return ClientUpdate(
        round=update.round,
        client_id=update.client_id,
        num_examples=1,
        tensors=clipped(tensors, most),
        experts=plan.experts,
    )


def _dense(name: str, tensor: Tensor, update: ClientUpdate, plan: ClientPlan) -> Tensor:
    """A row for each resident expert."""
    block = block_of(name)
    if block is None:
        return tensor
    rows = [plan.experts[block].index(expert) for expert in update.experts[block]]
    whole = torch.zeros(len(plan.experts[block]), *tensor.shape[1:], dtype=tensor.dtype)
    whole[rows] = tensor
    return whole
