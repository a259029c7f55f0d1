"""The mixtures of several clients at once, each over its own experts, for clients that train side by side.

Shape letters as in compute.py, and C clients.
"""

import torch
from torch import Tensor

from fftmoe.adapter.compute import COMPUTES, Activation, Compute, wide

MAX_GROUPS = 1023  # what one grouped_mm takes on CUDA


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
    """What `COMPUTES[name]` gives for each client alone, for all clients in as few products as it can.

    Args:
        name: of an implementation; `choose` decides by one client's sizes.
        x_CTD: each client's tokens; all tensors share its dtype except the ids.
        gates_CTK: weights of the chosen experts. A client with a smaller K gives weights of 0 to experts that it did
            not choose.
        expert_ids_CTK: int64 in 0..M-1, counted from the client's own first expert.
        up_CMHD: each client's experts.
        down_CMHD: each client's experts.
        activation: of the hidden units.
        max_groups: experts of one product; clients beyond it go into further ones.

    Returns:
        y_CTD.
    """
    arguments = (x_CTD, gates_CTK, expert_ids_CTK, up_CMHD, down_CMHD)
    if name == "wide":
        # One layer over the experts of all clients would be C times the arithmetic.
        return wide(*arguments, activation)
    # The loop's backward writes the gradient of all experts once per expert: client by client it writes less.
    together = 1 if name == "loop" else max(1, max_groups // up_CMHD.shape[1])
    chunks = zip(*(argument.split(together) for argument in arguments), strict=True)
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
    """One mixture over the experts of all clients, in which no token goes to another client's."""
    num_clients, num_experts = up_CMHD.shape[:2]
    first_C11 = num_experts * torch.arange(num_clients, device=x_CTD.device)[:, None, None]
    per_client = (x_CTD, gates_CTK, expert_ids_CTK + first_C11, up_CMHD, down_CMHD)
    return compute(*(tensor.flatten(0, 1) for tensor in per_client), activation=activation).view_as(x_CTD)
