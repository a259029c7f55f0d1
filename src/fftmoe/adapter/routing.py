"""Decides which experts each token goes to, and with which weight (docs/math.md, Router and Gates).

Shape letters: T tokens, D model dim, M experts, K top-k. For several clients in one batch every shape, those of the
weights too, has one more dimension in front.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fftmoe.errors import InputError, did_you_mean

GATES = ("detached", "renormalized", "softmax")


class Routing(NamedTuple):
    """Holds what a router decided for T tokens.

    Attributes:
        logits_TM: float32, or float64 for inputs in float64; -inf for experts that are not resident.
        probs_TM: softmax over the resident experts; 0 for the others.
        gates_TK: weights of the chosen experts, in the order of descending probability.
        expert_ids_TK: int64 indices of the chosen experts.
    """

    logits_TM: Tensor
    probs_TM: Tensor
    gates_TK: Tensor
    expert_ids_TK: Tensor


def gates(
    probs_TM: Tensor, top_k: int, kind: str = "detached", resident_M: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return each token's `top_k` most probable experts S and their weights (docs/math.md, Router and Gates).

    `detached`: p_m / stop_gradient(sum_S p). The weights sum to 1 for every k, so clients with different k give outputs
    of the same size, and the router still learns at k = 1.
    `renormalized`: p_m / sum_S p, the usual form. At k = 1 the gradient of the router is exactly zero.
    `softmax`: p_m. A smaller k gives a smaller output.

    Args:
        probs_TM: probabilities over the experts.
        top_k: at most the number of resident experts.
        kind: one of the three above.
        resident_M: bool; only these experts may be chosen. None: all experts.

    Returns:
        gates_TK in probs_TM's dtype; expert_ids_TK, int64.

    Raises:
        InputError: `kind` is unknown.
    """
    # A resident expert's probability can underflow to 0, that of absent experts; -1 ranks the absent ones last.
    ranked_TM = probs_TM if resident_M is None else probs_TM.masked_fill(~resident_M, -1.0)
    expert_ids_TK = ranked_TM.topk(top_k, dim=-1).indices
    chosen_TK = probs_TM.gather(-1, expert_ids_TK)
    if kind == "detached":
        return chosen_TK / chosen_TK.sum(-1, keepdim=True).detach(), expert_ids_TK
    if kind == "renormalized":
        # As a softmax of log p: p / p would leave rounding noise at k = 1, where the gradient is exactly zero.
        tiny = torch.finfo(chosen_TK.dtype).tiny
        return chosen_TK.clamp_min(tiny).log().softmax(-1), expert_ids_TK
    if kind == "softmax":
        return chosen_TK, expert_ids_TK
    raise InputError(f"unknown gates {kind!r}{did_you_mean(kind, GATES)}")


class Router(nn.Module):
    """Routes tokens with one row for each expert, computed in float32 or wider, as bfloat16 logits would change which
    experts are chosen.

    Args:
        num_experts: M, the number of rows.
        dim: model dim D.
        generator: source of the initial rows, N(0, 1/D).
    """

    def __init__(self, num_experts: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_experts, dim, generator=generator) * dim**-0.5)

    def forward(self, x_TD: Tensor, top_k: int, resident_M: Tensor | None, kind: str) -> Routing:
        """Route T tokens over the resident experts (a bool mask [M]; None: all experts)."""
        with torch.autocast(x_TD.device.type, enabled=False):
            wide = torch.promote_types(x_TD.dtype, torch.float32)
            logits_TM = x_TD.to(wide) @ self.weight.to(wide).mT
            if resident_M is not None:
                logits_TM = logits_TM.masked_fill(~resident_M, float("-inf"))
            probs_TM = logits_TM.softmax(-1)
            gates_TK, expert_ids_TK = gates(probs_TM, top_k, kind, resident_M)
        return Routing(logits_TM, probs_TM, gates_TK, expert_ids_TK)
