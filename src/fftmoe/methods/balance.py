"""The losses that keep experts evenly used, and the routing of a client (docs/math.md, Balance loss)."""

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
    """The method's constants that act on the client.

    Attributes:
        balance: target of the balance loss: by the global load, uniform, or no loss.
        balance_strength: lambda. balance_beta, balance_epsilon: of the target q ~ (u + epsilon) ** -beta.
        z_strength: of the router z-loss.
        router: whether router rows are aggregated, kept, or both.
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
        """pi: 0 for `shared`, 1 for `personal`."""
        return {"shared": 0.0, "personal": 1.0}.get(self.router, self.personal_fraction)


@dataclass(frozen=True)
class LocalResult:
    """What the training of a client results in; `slots` and `probs` per block as in `Balance`."""

    deltas: Tensors
    slots: Mapping[int, Tensor]
    probs: Mapping[int, Tensor]
    num_examples: int
    metrics: Mapping[str, float]


class Balance:
    """Sums up the routing of a client, and gives the auxiliary loss of each step.

    For C clients in one batch every shape here has C in front, and each client has a loss.

    Args:
        load: block -> float64 [R], the federation's load of the resident experts.

    Attributes:
        slots: block -> float64 [R], slots that were routed to each resident expert so far.
        probs: block -> float64 [R], their router probabilities, summed over the tokens.
    """

    def __init__(self, settings: LocalSettings, load: Mapping[int, Tensor]) -> None:
        self.settings, self.load = settings, load
        self.slots = {block: torch.zeros_like(u) for block, u in load.items()}
        self.probs = {block: torch.zeros_like(u) for block, u in load.items()}

    @classmethod
    def of(cls, settings: LocalSettings, blocks: Iterable[int], tensors: Tensors, device: torch.device) -> Self:
        """For a client, or for several, that downloaded these tensors with the load of their experts."""
        load = {b: tensors[names.expert_tensor(b, "load")].to(device, torch.float64) for b in blocks}
        return cls(settings, load)

    def penalty(self, routings: Mapping[int, Routing], mask: Tensor | None) -> Tensor:
        """lambda_n * L_bal + lambda_z * L_z of a step, each averaged over the adapted blocks.

        Args:
            mask: bool [T], False on padding; [B] for whole examples of T / B tokens each; None: every token counts.
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
        # The strength stays on the device: as a number it would wait for a GPU in every step.
        return strength.to(probs.dtype) * losses.balance_loss(load_now, probs, target.to(probs.dtype))


def _per_token(mask: Tensor | None, routing: Routing) -> Tensor | None:
    if mask is None or mask.shape[-1] == routing.probs_TM.shape[-2]:
        return mask
    return mask.repeat_interleave(routing.probs_TM.shape[-2] // mask.shape[-1], -1)
