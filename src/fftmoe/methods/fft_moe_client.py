"""FFT-MoE on the client: resident experts, router modes, the heterogeneity-aware loss (docs/math.md)."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.adapter import losses
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.shared_head import load_head
from fftmoe.records import ClientPlan, ClientUpdate, Tensors

BALANCE = ("heterogeneity-aware", "switch", "none")
ROUTERS = ("shared", "personal", "shared+personal")
UNKNOWN = -1.0  # affinity of an expert that the client never held


@dataclass(frozen=True)
class LocalSettings:
    """The method's constants that act on the client.

    Attributes:
        balance: target of the balance loss: against the global load, uniform, or no loss.
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


def shared_names(block: int) -> tuple[str, str]:
    """The tensors of a block's shared expert."""
    return f"shared.{block}.up", f"shared.{block}.down"


def load_projections(model: Any, tensors: Tensors) -> dict[str, nn.Parameter]:
    """Copy the shared updates of attention into the model; those that are not in `tensors` add nothing.

    Returns:
        the parameters of those that are, by their names.
    """
    shared = adapter.shared_projections(model)
    with torch.no_grad():
        for name, parameter in shared.items():
            parameter.copy_(tensors[name]) if name in tensors else parameter.zero_()
    return {name: parameter for name, parameter in shared.items() if name in tensors}


class FftMoeSession:
    """One client's training of its resident experts, router rows and head. A context manager."""

    def __init__(
        self,
        model: Any,
        plan: ClientPlan,
        tensors: Tensors,
        client_state: Tensors,
        settings: LocalSettings,
        num_experts: int,
    ) -> None:
        self.plan, self.settings, self.num_experts = plan, settings, num_experts
        self.client_state = dict(client_state)
        self.load = {block: tensors[f"blocks.{block}.load"].double() for block in plan.experts}
        self.parameters: Mapping[str, nn.Parameter] = self._install(model, tensors)
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        # Sums over the session's tokens: routed slots, and router probability, of each resident expert.
        self.slots = {block: torch.zeros(len(ids), dtype=torch.float64) for block, ids in plan.experts.items()}
        self.probs = {block: torch.zeros(len(ids), dtype=torch.float64) for block, ids in plan.experts.items()}
        self._model, self._stack = model, ExitStack()

    def __enter__(self) -> "FftMoeSession":
        self.read_routing = self._stack.enter_context(adapter.record_routing(self._model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _install(self, model: Any, tensors: Tensors) -> dict[str, nn.Parameter]:
        """Swap the client's experts into the resident model; a block outside its budget gets none."""
        parameters: dict[str, nn.Parameter] = {}
        for block, moe in adapter.blocks(model).items():
            if block not in self.plan.experts:
                moe.load_experts(moe.router.weight[:0], moe.up[:0], moe.down[:0], self.plan.budget.top_k)
                if moe.shared_up is not None:  # never reached without experts, but what is not held is not kept
                    moe.load_shared(moe.shared_up[:0], moe.shared_up[:0])
                continue
            prefix = f"blocks.{block}"
            router = tensors[f"{prefix}.router"] + self._router_residual(block)
            moe.load_experts(router, tensors[f"{prefix}.up"], tensors[f"{prefix}.down"], self.plan.budget.top_k)
            parameters |= {
                f"{prefix}.router": moe.router.weight,
                f"{prefix}.up": moe.up,
                f"{prefix}.down": moe.down,
            }
            if moe.shared_up is not None and moe.shared_down is not None:
                moe.load_shared(*(tensors[name] for name in shared_names(block)))
                parameters |= dict(zip(shared_names(block), (moe.shared_up, moe.shared_down), strict=True))
        parameters |= load_projections(model, tensors)
        return parameters | load_head(model, tensors, self.plan.training.train_head)

    def _router_residual(self, block: int) -> Tensor | float:
        """Personal rows P of the effective router W = W_global + P, [R, d]; 0 before there are any."""
        residual = self.client_state.get(f"blocks.{block}.router")
        return 0.0 if residual is None else residual[list(self.plan.experts[block])]

    def penalty(self, mask: Tensor | None) -> Tensor:
        """lambda_n * L_bal + lambda_z * L_z, each averaged over the adapted blocks (docs/math.md, Balance loss)."""
        total = torch.zeros(())
        routings = self.read_routing()
        for block, routing in routings.items():
            load_now, probs = losses.expert_load(routing, mask), losses.mean_probs(routing, mask)
            tokens = int(mask.sum()) if mask is not None else routing.expert_ids_TK.shape[0]
            self.slots[block] += load_now.double() * tokens
            self.probs[block] += probs.detach().double() * tokens
            total = total + self._balance(block, load_now, probs)
            total = total + self.settings.z_strength * losses.router_z_loss(routing, mask)
        return total / max(len(routings), 1)

    def _balance(self, block: int, load_now: Tensor, probs: Tensor) -> Tensor:
        settings, load = self.settings, self.load[block]
        if settings.balance == "none":
            return torch.zeros(())
        if settings.balance == "switch":
            target = losses.target_load(load, 0.0, settings.balance_epsilon)
            return settings.balance_strength * losses.balance_loss(load_now, probs, target.to(probs.dtype))
        target = losses.target_load(load, settings.balance_beta, settings.balance_epsilon)
        own = self.slots[block] / self.slots[block].sum()
        strength = settings.balance_strength * (1.0 - float(losses.skew(own, load)))
        return strength * losses.balance_loss(load_now, probs, target.to(probs.dtype))

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Deltas of the experts that were trained; affinities and personal router rows stay here."""
        deltas = {name: p.detach() - self.start[name] for name, p in self.parameters.items()}
        tensors = {name: delta for name, delta in deltas.items() if not name.startswith("blocks.")}
        experts, shares, preferences = {}, {}, {}
        for block, resident in self.plan.experts.items():
            rows = self._trained_rows(block, deltas)
            experts[block] = tuple(resident[row] for row in rows.tolist())
            shares[block] = tuple((self.slots[block][rows] / self.slots[block].sum()).tolist())
            for part in ("up", "down"):
                tensors[f"blocks.{block}.{part}"] = deltas[f"blocks.{block}.{part}"][rows]
            router_delta = deltas[f"blocks.{block}.router"]
            if self.settings.kept_fraction < 1:
                tensors[f"blocks.{block}.router"] = (1 - self.settings.kept_fraction) * router_delta[rows]
            if self.settings.kept_fraction > 0:
                self._keep(f"blocks.{block}.router", resident, self.settings.kept_fraction * router_delta)
            preferences[block] = self._update_affinity(block, resident)
        update = ClientUpdate(
            round=self.plan.round,
            client_id=self.plan.client_id,
            num_examples=num_examples,
            tensors=tensors,
            experts=experts,
            shares=shares,
            preferences=preferences,
            metrics=dict(metrics),
        )
        return update, self.client_state

    def _trained_rows(self, block: int, deltas: Tensors) -> Tensor:
        """Rows of the experts that received a token and a gradient; int64.

        Tokens alone do not train: where the head reads one token, the others of the last block have no gradient,
        and counting their experts would dilute the average with zeros.
        """
        moved = deltas[f"blocks.{block}.up"].flatten(1).any(1) | deltas[f"blocks.{block}.down"].flatten(1).any(1)
        return ((self.slots[block] > 0) & moved).nonzero().flatten()

    def _keep(self, name: str, resident: tuple[int, ...], change: Tensor) -> None:
        """Add `change` [R, d] to the client's own router rows, [M, d]."""
        residual = self.client_state.get(name, torch.zeros(self.num_experts, change.shape[1])).clone()
        residual[list(resident)] += change
        self.client_state[name] = residual

    def _update_affinity(self, block: int, resident: tuple[int, ...]) -> tuple[int, ...]:
        """Remember each resident expert's mean probability relative to uniform; return the known ones, best first."""
        name = f"blocks.{block}.affinity"
        affinity = self.client_state.get(name, torch.full((self.num_experts,), UNKNOWN)).clone()
        mean = self.probs[block] / self.probs[block].sum()
        affinity[list(resident)] = (mean * len(resident)).float()
        self.client_state[name] = affinity
        order = torch.argsort(affinity, descending=True, stable=True).tolist()
        return tuple(m for m in order if affinity[m] != UNKNOWN)
