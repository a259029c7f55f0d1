"""Computes the mixtures of several clients at once, each over its own experts.

Shape letters as in compute.py, and C clients.
"""

import torch
from torch import Tensor

from fftmoe.adapter.compute import COMPUTES, Activation, Compute, wide

MAX_GROUPS = 1023  # the most groups that one grouped_mm takes on CUDA


def stacked(
    name: str,
    x_CTD: Tensor,
    gates_CTK: Tensor,
    expert_ids_CTK: Tensor,
    up_CMHD: Tensor,
    down_CMHD: Tensor,
    activation: Activation,
    *,
    max_groups: int = MAX_GROUPS,
) -> Tensor:
    """Return what `COMPUTES[name]` gives for each client, computed for all clients in as few products as possible.

    Args:
        name: of an implementation; `choose` decides it from the sizes of one client.
        x_CTD: the tokens of each client; all tensors share its dtype except the ids.
        gates_CTK: weights of the chosen experts. A client with a smaller K has weights of 0 for experts that it did
            not choose.
        expert_ids_CTK: int64 in 0..M-1, counted within the client's own experts.
        up_CMHD: the first layers of each client's experts.
        down_CMHD: the second layers of each client's experts.
        activation: of the hidden units.
        max_groups: the most experts in one product; further clients go into further products.

    Returns:
        y_CTD.
    """
    arguments = (x_CTD, gates_CTK, expert_ids_CTK, up_CMHD, down_CMHD)
    if name == "wide":
        # One layer over the experts of all clients would need C times the arithmetic.
        return wide(*arguments, activation)
    # The backward pass of the loop writes the gradient of all experts once per expert, which is less for one client.
    clients_per_product = 1 if name == "loop" else max(1, max_groups // up_CMHD.shape[1])
    chunks = zip(*(argument.split(clients_per_product) for argument in arguments), strict=True)
    return torch.cat([_as_one(COMPUTES[name], *chunk, activation=activation) for chunk in chunks])


def _as_one(
    compute: Compute,
    x_CTD: Tensor,
    gates_CTK: Tensor,
    expert_ids_CTK: Tensor,
    up_CMHD: Tensor,
    down_CMHD: Tensor,
    activation: Activation,
) -> Tensor:
    """Compute one mixture over the experts of all clients, in which no token goes to an expert of another client."""
    num_clients, num_experts = up_CMHD.shape[:2]
    first_C11 = num_experts * torch.arange(num_clients, device=x_CTD.device)[:, None, None]
    per_client = (x_CTD, gates_CTK, expert_ids_CTK + first_C11, up_CMHD, down_CMHD)
    return compute(*(tensor.flatten(0, 1) for tensor in per_client), activation=activation).view_as(x_CTD)
