"""Computes auxiliary losses by pure functions of a Routing (docs/math.md, Balance loss and z-loss).

They return values and store nothing. Each takes an optional token mask, so that padding does not count as load and does
not train the router. Where a client holds R < M experts, every vector is over those R experts. For several clients in
one batch every shape has one more dimension in front, and each client gets its own value.

Shape letters: T tokens, M experts, K top-k.
"""

import torch
from torch import Tensor

from fftmoe.adapter.routing import Routing


def expert_load(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Return f_M: the fraction of routed slots that went to each expert.

    It is 1/M for each expert at balance. It sums to 1 for every top-k, or to 0 where the mask leaves no token. It has
    no gradient.

    Args:
        routing: of T tokens.
        mask: [T] bool or 0/1, true for the tokens that count; None: all tokens.

    Returns:
        float32 [M].
    """
    *clients, _, num_experts = routing.probs_TM.shape
    top_k = routing.expert_ids_TK.shape[-1]
    weight_T = _weights(routing, mask)
    # Sums of ones are exact in float32 (below 2^24 slots per expert), so their order does not matter.
    counts_M = routing.probs_TM.new_zeros(*clients, num_experts)
    slots_TK = weight_T[..., None].expand_as(routing.expert_ids_TK)
    counts_M = counts_M.scatter_add(-1, routing.expert_ids_TK.flatten(-2), slots_TK.flatten(-2))
    return counts_M / (weight_T.sum(-1, keepdim=True) * top_k).clamp_min(1)


def mean_probs(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Return P_M: the mean router probability of each expert, with its gradient; 1/M for each expert at balance.

    Args:
        routing: of T tokens.
        mask: [T] bool or 0/1; None: all tokens.

    Returns:
        float32 [M].
    """
    weight_T = _weights(routing, mask)
    return (routing.probs_TM * weight_T[..., None]).sum(-2) / weight_T.sum(-1, keepdim=True).clamp_min(1)


def target_load(global_load_M: Tensor, beta: float, epsilon: float) -> Tensor:
    """Return q_M, the load to aim for: proportional to (u_m + epsilon)^-beta, with the sum 1.

    beta = 0 gives the classical uniform target, 1/M for each expert, whatever the global load. A larger beta sends more
    tokens to the experts that the federation uses least.

    Args:
        global_load_M: u, the federation's load of these experts.
        beta: at least 0.
        epsilon: above 0; it keeps the target of an unused expert finite.
    """
    # As a softmax of logs: (u + epsilon)^-beta overflows for a large beta.
    return (-beta * (global_load_M + epsilon).log()).softmax(-1)


def balance_loss(load_M: Tensor, probs_M: Tensor, target_M: Tensor) -> Tensor:
    """Return the sum over experts of f_m P_m / q_m (docs/math.md, Balance loss).

    At balance, f = P = q, its exact value is 1 for every number of experts, top-k and target.

    Args:
        load_M: f, from `expert_load`.
        probs_M: P, from `mean_probs`.
        target_M: q, from `target_load`.
    """
    return (load_M * probs_M / target_M).sum(-1)


def router_z_loss(routing: Routing, mask: Tensor | None = None) -> Tensor:
    """Return the mean over tokens of logsumexp(logits)^2 over the resident experts, which keeps the logits small.

    Its value at balance depends on the logits: with all logits 0 it is log(R)^2.

    Args:
        routing: of T tokens.
        mask: [T] bool or 0/1; None: all tokens.
    """
    weight_T = _weights(routing, mask)
    return (routing.logits_TM.logsumexp(-1).square() * weight_T).sum(-1) / weight_T.sum(-1).clamp_min(1)


def skew(load_M: Tensor, global_load_M: Tensor) -> Tensor:
    """Return the skew s in [0, 1]: total variation 0.5 * sum |f - u| between a client's load and the global one.

    It is 0 where they agree, and 1 where the client uses only experts that no other client uses. A client may hold only
    some experts, so the global load is first rescaled to the sum 1 over these; if none was used, it is uniform.
    """
    total = global_load_M.sum(-1, keepdim=True)
    uniform_M = torch.full_like(global_load_M, 1 / global_load_M.shape[-1])
    reference_M = torch.where(total > 0, global_load_M / total, uniform_M)
    return 0.5 * (load_M - reference_M).abs().sum(-1)


def _weights(routing: Routing, mask: Tensor | None) -> Tensor:
    if mask is None:
        return routing.probs_TM.new_ones(routing.probs_TM.shape[:-1])
    return mask.to(routing.probs_TM)
