"""Computes the auxiliary losses that keep the use of the experts even (docs/math.md, Balance loss and z-loss).

Over the resident experts of a block, with f_m the share of routed slots of expert m, P_m its mean router probability
and u the global load:

    q_m ~ (u_m + epsilon)^(-beta),   L_bal = sum_m f_m P_m / q_m,   lambda_n = lambda (1 - s_n)

s_n is the distance between the client's own load and the global load. A client with skewed data may thus specialise.
The balance loss follows the Switch Transformer (Fedus et al., arXiv 2101.03961), the z-loss ST-MoE (Zoph et al.,
arXiv 2202.08906).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fftmoe.adapter import Routing, losses
from fftmoe.errors import InputError, did_you_mean
from fftmoe.records import Tensors, names

BALANCE = ("heterogeneity-aware", "switch", "none")
ROUTERS = ("shared", "personal", "shared+personal")


@dataclass(frozen=True)
class LocalSettings:
    """Holds the constants of the method that act on the client.

    Attributes:
        balance: target of the balance loss: `heterogeneity-aware` follows the global load, `switch` is uniform, `none`
            drops the loss.
        balance_strength: lambda, the strength of the balance loss.
        balance_beta: beta of the target q ~ (u + epsilon) ** -beta.
        balance_epsilon: epsilon of the same target.
        z_strength: strength of the router z-loss.
        router: whether router rows are aggregated (`shared`), kept on the client (`personal`), or both.
        personal_fraction: pi, the part of a router change that stays on the client when `router` is
            `shared+personal`; `shared` is pi = 0 and `personal` is pi = 1.
    """

    balance: str = "heterogeneity-aware"
    balance_strength: float = 0.01
    balance_beta: float = 1.0
    balance_epsilon: float = 0.01
    z_strength: float = 0.001
    router: str = "shared"
    personal_fraction: float = 0.5

    def __post_init__(self) -> None:
        for field, value, valid in (("balance", self.balance, BALANCE), ("router", self.router, ROUTERS)):
            if value not in valid:
                raise InputError(f"unknown {field} {value!r}{did_you_mean(value, valid)}")

    @property
    def kept_fraction(self) -> float:
        """Return the part pi of a router change that stays on the client: 0 for `shared`, 1 for `personal`."""
        return {"shared": 0.0, "personal": 1.0}.get(self.router, self.personal_fraction)


@dataclass(frozen=True)
class LocalResult:
    """`LocalResult` is the result of a client's local training.

    Attributes:
        deltas: change of each trained tensor.
        slots: as `Balance.slots`.
        probs: as `Balance.probs`.
        num_examples: number of examples of the client.
        metrics: training metrics by name.
    """

    deltas: Tensors
    slots: Mapping[int, Tensor]
    probs: Mapping[int, Tensor]
    num_examples: int
    metrics: Mapping[str, float]


class Balance:
    """`Balance` sums the routing statistics of a client and computes the auxiliary loss of each step.

    For C clients in one batch, every shape here has C as its first dimension, and each client has its own loss.

    Args:
        settings: constants of the losses.
        load: block -> float64 [R], the global load of the resident experts.

    Attributes:
        slots: block -> float64 [R], the slots that have been routed to each resident expert so far.
        probs: block -> float64 [R], the router probabilities of these experts, summed over the tokens.
    """

    def __init__(self, settings: LocalSettings, load: Mapping[int, Tensor]) -> None:
        self.settings, self.load = settings, load
        self.slots = {block: torch.zeros_like(u) for block, u in load.items()}
        self.probs = {block: torch.zeros_like(u) for block, u in load.items()}

    @classmethod
    def of(cls, settings: LocalSettings, blocks: Iterable[int], tensors: Tensors, device: torch.device) -> Self:
        """Start the statistics of one client or of several stacked clients.

        Args:
            settings: constants of the losses.
            blocks: the blocks that the client adapts.
            tensors: the client's download, which contains the load of its experts.
            device: device of the statistics.
        """
        load = {b: tensors[names.expert_tensor(b, "load")].to(device, torch.float64) for b in blocks}
        return cls(settings, load)

    def penalty(self, routings: Mapping[int, Routing], mask: Tensor | None) -> Tensor:
        """Return lambda_n * L_bal + lambda_z * L_z of one step, averaged over the adapted blocks.

        Args:
            routings: block -> the routing of the step.
            mask: bool [T], False on padding; or bool [B] for B examples of T / B tokens each; None: every token counts.
        """
        total = torch.zeros(())
        for block, routing in routings.items():
            tokens_T = _per_token(mask, routing)
            load_now, probs = losses.expert_load(routing, tokens_T), losses.mean_probs(routing, tokens_T)
            tokens = routing.probs_TM.shape[-2] if tokens_T is None else tokens_T.sum(-1, keepdim=True)
            self.slots[block] += load_now.double() * tokens
            self.probs[block] += probs.detach().double() * tokens
            total = total + self._balance(block, load_now, probs)
            total = total + self.settings.z_strength * losses.router_z_loss(routing, tokens_T)
        return total / max(len(routings), 1)

    def _balance(self, block: int, load_now: Tensor, probs: Tensor) -> Tensor:
        settings, load = self.settings, self.load[block]
        if settings.balance == "none":
            return torch.zeros(())
        if settings.balance == "switch":
            target = losses.target_load(load, 0.0, settings.balance_epsilon)
            return settings.balance_strength * losses.balance_loss(load_now, probs, target.to(probs.dtype))
        target = losses.target_load(load, settings.balance_beta, settings.balance_epsilon)
        own = self.slots[block] / self.slots[block].sum(-1, keepdim=True)
        strength = settings.balance_strength * (1.0 - losses.skew(own, load))
        # The strength stays a tensor: converting it to a number would wait for the GPU in every step.
        return strength.to(probs.dtype) * losses.balance_loss(load_now, probs, target.to(probs.dtype))


def _per_token(mask: Tensor | None, routing: Routing) -> Tensor | None:
    """Expand a mask of examples to a mask of tokens."""
    if mask is None or mask.shape[-1] == routing.probs_TM.shape[-2]:
        return mask
    return mask.repeat_interleave(routing.probs_TM.shape[-2] // mask.shape[-1], -1)
