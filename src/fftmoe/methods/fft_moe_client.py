"""FFT-MoE on the client: its resident experts in the model, its training, its update (docs/math.md)."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import device_of
from fftmoe.methods.balance import Balance, LocalSettings
from fftmoe.methods.shared_head import load_head
from fftmoe.records import ClientPlan, ClientUpdate, Tensors, names

UNKNOWN = -1.0  # affinity of an expert that the client never held


def load_projections(model: Any, tensors: Tensors) -> dict[str, nn.Parameter]:
    """Put copies of the shared updates of attention into the model; those not in `tensors` add nothing.

    Returns:
        the parameters of those that are, by their names.
    """
    for prefix, low_rank in adapter.low_ranks(model).items():
        a, b = names.shared_factors(prefix)
        if a in tensors:
            low_rank.load(tensors[a], tensors[b])
        else:
            low_rank.load(*(torch.zeros(p.shape[-2:]) for p in (low_rank.low_a, low_rank.low_b)))
    return {name: p for name, p in adapter.shared_projections(model).items() if name in tensors}


def install_experts(model: Any, plan: ClientPlan, tensors: Tensors) -> dict[str, nn.Parameter]:
    """Swap a client's experts into the resident model; a block outside its budget gets none.

    Args:
        tensors: what the client trains, by name; of C clients with the same budget, each with C in front.

    Returns:
        the model's new parameters, under the same names.
    """
    parameters: dict[str, nn.Parameter] = {}
    for block, moe in adapter.blocks(model).items():
        if block not in plan.experts:
            hold_nothing(moe, plan.budget.top_k)
            continue
        router, up, down = (tensors[name] for name in names.expert_tensors(block))
        moe.load_experts(router, up, down, plan.budget.top_k)
        parameters |= dict(zip(names.expert_tensors(block), (moe.router.weight, moe.up, moe.down), strict=True))
        if moe.shared_up is not None and moe.shared_down is not None:
            moe.load_shared(*(tensors[name] for name in names.shared_tensors(block)))
            parameters |= dict(zip(names.shared_tensors(block), (moe.shared_up, moe.shared_down), strict=True))
    return parameters | load_projections(model, tensors)


def hold_nothing(moe: adapter.SparseMoe, top_k: int) -> None:
    """What a block is that a client does not adapt."""
    expert_dim, dim = moe.up.shape[-2:]
    none, no_rows = torch.zeros(0, expert_dim, dim), torch.zeros(0, dim)
    moe.load_experts(no_rows, none, none, top_k)
    if moe.shared_up is not None:  # never reached without experts, but what is not held is not kept
        moe.load_shared(no_rows, no_rows)


def own_routers(plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Tensors:
    """The tensors with the effective router rows W = W_global + P, where the client has rows P of its own."""
    own = {}
    for block, experts in plan.experts.items():
        name = names.expert_tensor(block, "router")
        if name in client_state:
            own[name] = tensors[name] + client_state[name][list(experts)]
    return {**tensors, **own}


def load_of(plan: ClientPlan, tensors: Tensors, device: torch.device) -> dict[int, Tensor]:
    """The federation's load of the resident experts by block, float64."""
    return {block: tensors[names.expert_tensor(block, "load")].to(device, torch.float64) for block in plan.experts}


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
        self.plan, self.client_state = plan, client_state
        self.make_update = UpdateMaker(settings, num_experts)
        self.balance = Balance(settings, load_of(plan, tensors, device_of(model)))
        self.parameters: Mapping[str, nn.Parameter] = {
            **install_experts(model, plan, own_routers(plan, tensors, client_state)),
            **load_head(model, tensors, plan.training.train_head),
        }
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._model, self._stack = model, ExitStack()

    def __enter__(self) -> "FftMoeSession":
        self.read_routing = self._stack.enter_context(adapter.record_routing(self._model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def penalty(self, mask: Tensor | None) -> Tensor:
        """The auxiliary losses of the last forward pass; called once per step."""
        return self.balance.penalty(self.read_routing(), mask)

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Deltas of the experts that were trained; affinities and personal router rows stay here."""
        trained = Trained(
            deltas={name: (p.detach() - self.start[name]).cpu() for name, p in self.parameters.items()},
            slots={block: sums.cpu() for block, sums in self.balance.slots.items()},
            probs={block: sums.cpu() for block, sums in self.balance.probs.items()},
        )
        return self.make_update(self.plan, self.client_state, trained, num_examples, metrics)


@dataclass(frozen=True)
class Trained:
    """What a client's training left: its deltas by name, and per block its slots and probabilities (see `Balance`)."""

    deltas: Tensors
    slots: Mapping[int, Tensor]
    probs: Mapping[int, Tensor]


@dataclass(frozen=True)
class UpdateMaker:
    """From what training left to the update and the state that the client keeps. M is `num_experts`."""

    settings: LocalSettings
    num_experts: int

    def __call__(
        self,
        plan: ClientPlan,
        client_state: Tensors,
        trained: Trained,
        num_examples: int,
        metrics: Mapping[str, float],
    ) -> tuple[ClientUpdate, Tensors]:
        """Pure: a new state is returned, and the old one left as it was."""
        deltas, kept_fraction = trained.deltas, self.settings.kept_fraction
        state = dict(client_state)
        tensors = {name: delta for name, delta in deltas.items() if not names.is_expert(name)}
        experts, shares, preferences = {}, {}, {}
        for block, resident in plan.experts.items():
            rows, slots = _trained_rows(block, trained), trained.slots[block]
            if plan.training.example_clip is not None:  # noise moves them all, and which had a token is not to be told
                rows = torch.arange(len(resident))
            experts[block] = tuple(resident[row] for row in rows.tolist())
            shares[block] = tuple((slots[rows] / slots.sum().clamp_min(1)).tolist())
            router, up, down = names.expert_tensors(block)
            tensors |= {up: deltas[up][rows], down: deltas[down][rows]}
            change = deltas[router]
            if kept_fraction < 1:
                tensors[router] = (1 - kept_fraction) * change[rows]
            if kept_fraction > 0:
                state[router] = self._residual(state.get(router), resident, kept_fraction * change)
            known = names.expert_tensor(block, "affinity")
            state[known] = affinity = self._affinity(state.get(known), resident, trained.probs[block])
            order = torch.argsort(affinity, descending=True, stable=True).tolist()
            preferences[block] = tuple(m for m in order if affinity[m] != UNKNOWN)
        return ClientUpdate(
            round=plan.round,
            client_id=plan.client_id,
            num_examples=num_examples,
            tensors=tensors,
            experts=experts,
            shares=shares,
            preferences=preferences,
            metrics=dict(metrics),
        ), state

    def _residual(self, old: Tensor | None, resident: tuple[int, ...], change: Tensor) -> Tensor:
        """The client's own router rows [M, d] after `change` [R, d] of the resident ones."""
        residual = torch.zeros(self.num_experts, change.shape[1]) if old is None else old.clone()
        residual[list(resident)] += change
        return residual

    def _affinity(self, old: Tensor | None, resident: tuple[int, ...], probs: Tensor) -> Tensor:
        """Each expert's mean probability relative to uniform, [M], when the client last held it."""
        affinity = torch.full((self.num_experts,), UNKNOWN) if old is None else old.clone()
        affinity[list(resident)] = (probs / probs.sum().clamp_min(1e-9) * len(resident)).float()
        return affinity


def _trained_rows(block: int, trained: Trained) -> Tensor:
    """Rows of the experts that received a token and a gradient; int64.

    Tokens alone do not train: where the head reads one token, the others of the last block have no gradient,
    and counting their experts would dilute the average with zeros.
    """
    _, up, down = (trained.deltas[name] for name in names.expert_tensors(block))
    moved = up.flatten(1).any(1) | down.flatten(1).any(1)
    return ((trained.slots[block] > 0) & moved).nonzero().flatten()
