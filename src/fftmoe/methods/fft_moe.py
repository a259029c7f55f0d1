"""FFT-MoE averages sparse mixture-of-experts adapters expert by expert (arXiv 2508.18663; docs/math.md).

Next to the feed-forward network of a block stands a pool of M experts, E_m(x) = V_m^T sigma(U_m x), and a router with
one row per expert. A token uses its top k experts, weighted by their gates g_m(x):

    y(x) = FFN(x) + sum_m g_m(x) E_m(x)                                              (`fftmoe.adapter`)

The pool is the global model. In a round, client n receives a personal subset R_n of the experts (`residents.py`), as
many as its budget allows, trains them on its examples D_n, and sends the deltas of those that received a token and a
gradient. The server averages each expert m over the clients that trained it, and the load of the experts over time:

    theta_m <- theta_m + eta * sum_n w_nm Delta_nm / sum_n w_nm,   w_nm = |D_n| a_nm^gamma
    u       <- rho u + (1 - rho) sum_n |D_n| a_n / sum_n |D_n|

with a_nm the share of the client's routed slots that went to m. Three parts have files of their own: `residents.py`
(who holds which experts), `balance.py` (the auxiliary losses) and `merge/aggregate.py` (the sums). `fft_moe_stack.py`
is the fast path that trains several clients in one batch; the session here is its specification.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fftmoe import adapter
from fftmoe.backbones import device_of
from fftmoe.methods.balance import Balance, LocalResult, LocalSettings
from fftmoe.methods.base import CostMatch, Defaults, MethodParts, Stack
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.deltas import LONGEST_FLOAT, losses_of, mean_loss, widest, zeros
from fftmoe.methods.expert_loading import load_experts, load_projections, parameters_of
from fftmoe.methods.fft_moe_stack import FftMoeStack
from fftmoe.methods.merge.aggregate import Merge, WeightedSum
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.methods.residents import Design, balanced_design, personal_residents
from fftmoe.methods.shared_head import head_tensors, load_head
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors, names

NEVER_HELD = -1.0  # affinity of an expert that the client never held


@dataclass(frozen=True)
class FftMoe(Defaults):
    """Is the method FFT-MoE, as an immutable value. Every part that an ablation switches is a field.

    Attributes:
        budgets: client_id -> budget, for every client of the population.
        shape: d and h of one expert.
        num_experts: M, the size of the pool in each block.
        local: what happens on the client (router mode, balance loss).
        merge: how the updates of a round become one delta.
        optimizer: how the server applies the delta, with eta.
        residents: `personal` (from routing statistics) or `balanced` (a fixed seeded design).
        explore: keep one resident slot for the expert that fewest clients hold.
        load_decay: rho of the moving average of expert load.
        weigh_load: weigh clients in it by |D_n|; otherwise each counts as one.
        seed: of the balanced design.
    """

    budgets: Mapping[int, Budget]
    shape: ExpertShape
    num_experts: int
    local: LocalSettings = field(default_factory=LocalSettings)
    merge: Merge = WeightedSum
    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    residents: str = "personal"
    explore: bool = True
    load_decay: float = 0.5
    weigh_load: bool = True
    seed: int = 0

    capabilities: ClassVar[Capabilities] = METHODS["fft-moe"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """Make FFT-MoE for a population of clients."""
        mean = partial(WeightedSum, kind=parts.aggregation, activation_power=parts.activation_power)
        return cls(
            budgets=parts.budgets,
            shape=parts.shape,
            num_experts=parts.num_experts,
            local=parts.local,
            merge=parts.merge or mean,
            optimizer=parts.optimizer,
            residents=parts.residents,
            explore=parts.explore,
            load_decay=parts.load_decay,
            weigh_load=parts.weigh_load,
            seed=parts.seed,
        )

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Return the tiers as the recipe states them."""
        return tuple(tiers)

    # The server: what it holds and what it sends

    def init(self, model: Any) -> ServerState:
        """Return the initial state: the new pool, the head, and a uniform load."""
        tensors, load = head_tensors(model), {}
        for block, moe in adapter.blocks(model).items():
            tensors |= {name: p.detach().cpu().clone() for name, p in parameters_of(block, moe).items()}
            load[names.load_of_block(block)] = torch.full(
                (self.num_experts,), 1 / self.num_experts, dtype=torch.float64
            )
        tensors |= {name: p.detach().cpu().clone() for name, p in adapter.shared_projections(model).items()}
        return ServerState(round=0, tensors=tensors, load=load)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Choose R_n for each client of the cohort (docs/math.md, Residents)."""
        preferences = state.preferences if self.residents == "personal" else {}
        budgets = {client_id: self.budgets[client_id] for client_id in cohort}
        return personal_residents(budgets, preferences, self._design, self.num_experts, self.explore)

    @cached_property
    def _design(self) -> Design:
        """Return the balanced design. It is the same in every round and needs the whole population."""
        return balanced_design(self.budgets, self.num_experts, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the design: methods are sent to worker processes, which assign nothing."""
        return {name: value for name, value in vars(self).items() if name != "_design"}

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Return the head and, for each of the client's blocks, its experts with their load and all shared parts."""
        tensors = {name: t for name, t in state.tensors.items() if names.is_head(name)}
        for block, experts in plan.experts.items():
            ids = torch.tensor(experts, dtype=torch.long)
            tensors |= {name: state.tensors[name][ids] for name in names.expert_tensors(block)}
            tensors |= {name: t for name, t in state.tensors.items() if names.shared_block_of(name) == block}
            tensors[names.expert_tensor(block, "load")] = state.load[names.load_of_block(block)][ids].float()
        return tensors

    # The client: what it trains

    def session(
        self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors
    ) -> AbstractContextManager["FftMoeSession"]:
        """Open the local training of a client."""
        return FftMoeSession(model, plan, tensors, client_state, self.local, self.num_experts)

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """Open the local training of several clients in one batch."""
        own = [with_own_routers(*each) for each in zip(plans, tensors, client_states, strict=True)]

        def finish(position: int, result: LocalResult) -> tuple[ClientUpdate, Tensors]:
            return update_of(plans[position], client_states[position], result, self.local, self.num_experts)

        return FftMoeStack(model, plans, own, self.local, finish)

    # The server: what it merges

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Average every expert over the clients that trained it; update the load and the clients' preferences."""
        mean = self.merge({name: t.shape for name, t in state.tensors.items()})
        preferences = dict(state.preferences)
        routed = {name: torch.zeros_like(u) for name, u in state.load.items()}  # sum_n |D_n| a_n
        losses: list[float] = []
        for update in updates:
            mean.add(update)
            preferences[update.client_id] = update.preferences
            losses += losses_of(update)
            for block, experts in update.experts.items():
                shares = torch.tensor(update.shares[block], dtype=torch.float64)
                weight = update.num_examples if self.weigh_load else 1
                routed[names.load_of_block(block)][list(experts)] += weight * shares
        deltas, trained = mean.mean()
        tensors, optimizer = self.optimizer.apply(state.tensors, deltas, trained, state.optimizer)
        load = {name: self._moving_load(u, routed[name]) for name, u in state.load.items()}
        new = {"tensors": tensors, "optimizer": optimizer, "load": load, "preferences": preferences}
        return replace(state, round=state.round + 1, **new), {
            "train_loss": mean_loss(losses),
            "expert_load_cv": load_variation(routed),
            "experts_trained": _fraction_trained(trained),
        }

    def _moving_load(self, load: Tensor, routed: Tensor) -> Tensor:
        if routed.sum() == 0:  # no client of the cohort adapts this block
            return load
        return self.load_decay * load + (1 - self.load_decay) * routed / routed.sum()

    # The model in use

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Put the whole pool into the budget's blocks, with its top_k."""
        load_experts(model, tensors, budget.blocks, budget.top_k)
        load_projections(model, {n: t for n, t in tensors.items() if names.shared_block_of(n) in budget.blocks})
        load_head(model, tensors)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Put the client's resident experts and its effective router into the model."""
        # A session puts the client's experts into the model when it is made; they stay there.
        self.session(model, plan, tensors, client_state)

    # Forecasts

    def parameters(self, budget: Budget) -> int:
        """Count the parameters of the resident experts, their router rows, and the shared parts."""
        return len(budget.blocks) * self.shape.block_parameters(budget.experts)

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Return the update of a client that trained all its experts and has statistics of the whole pool."""
        kept = {"load", "router"} if self.local.kept_fraction == 1 else {"load"}
        sent = [name for name in download if not (names.is_expert(name) and names.parse(name).part in kept)]
        sent = [name for name in sent if plan.training.train_head or not names.is_head(name)]
        update = widest(plan, {name: zeros(download[name].shape) for name in sent})
        shares = {block: (LONGEST_FLOAT,) * len(ids) for block, ids in plan.experts.items()}
        preferences = dict.fromkeys(plan.experts, tuple(range(self.num_experts)))
        return replace(update, experts=plan.experts, shares=shares, preferences=preferences)


# Diagnostics


def load_variation(load: Tensors) -> float:
    """Return the coefficient of variation of expert load, averaged over the blocks; 0 for equal use."""
    values = [float(u.std(correction=0) / u.mean()) for u in load.values() if u.sum() > 0]
    return sum(values) / len(values) if values else 0.0


def _fraction_trained(trained: Tensors) -> float:
    rows = [mask for name, mask in trained.items() if names.parse(name).part == "up"]
    return float(torch.cat(rows).double().mean()) if rows else 0.0


# A client's training and its update


def with_own_routers(plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Tensors:
    """Return the tensors with the client's effective router rows W + P_n (docs/math.md, Router modes)."""
    own = {}
    for block, experts in plan.experts.items():
        name = names.expert_tensor(block, "router")
        if name in client_state:
            own[name] = tensors[name] + client_state[name][list(experts)]
    return {**tensors, **own}


class FftMoeSession:
    """Trains one client's resident experts, router rows and head; used as a context manager."""

    def __init__(
        self,
        model: Any,
        plan: ClientPlan,
        tensors: Tensors,
        client_state: Tensors,
        settings: LocalSettings,
        num_experts: int,
    ) -> None:
        self.plan, self.client_state, self.settings, self.num_experts = plan, client_state, settings, num_experts
        self.balance = Balance.of(settings, plan.experts, tensors, device_of(model))
        own = with_own_routers(plan, tensors, client_state)
        self.parameters: Mapping[str, nn.Parameter] = {
            **load_experts(model, own, plan.experts, plan.budget.top_k),
            **load_projections(model, own),
            **load_head(model, tensors, plan.training.train_head),
        }
        self.start = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._model, self._stack = model, ExitStack()

    def __enter__(self) -> Self:
        self.read_routing = self._stack.enter_context(adapter.record_routing(self._model))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def penalty(self, mask: Tensor | None) -> Tensor:
        """Return lambda_n L_bal + lambda_z L_z of the last forward pass; called once per step."""
        return self.balance.penalty(self.read_routing(), mask)

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return the deltas of the trained experts; affinities and personal router rows stay on the client."""
        result = LocalResult(
            deltas={name: (p.detach() - self.start[name]).cpu() for name, p in self.parameters.items()},
            slots={block: sums.cpu() for block, sums in self.balance.slots.items()},
            probs={block: sums.cpu() for block, sums in self.balance.probs.items()},
            num_examples=num_examples,
            metrics=metrics,
        )
        return update_of(self.plan, self.client_state, result, self.settings, self.num_experts)


def update_of(
    plan: ClientPlan, client_state: Tensors, result: LocalResult, settings: LocalSettings, num_experts: int
) -> tuple[ClientUpdate, Tensors]:
    """Return the update that a client sends, and its new state; the old state is left unchanged."""
    deltas, pi, state = result.deltas, settings.kept_fraction, dict(client_state)
    tensors = {name: delta for name, delta in deltas.items() if not names.is_expert(name)}
    experts, shares, preferences = {}, {}, {}
    for block, resident in plan.experts.items():
        router, up, down = names.expert_tensors(block)
        rows, slots = _trained_rows(deltas[up], deltas[down], result.slots[block]), result.slots[block]
        if plan.training.example_clip is not None:  # noise moves all experts, and must hide which ones had a token
            rows = torch.arange(len(resident))
        experts[block] = tuple(resident[row] for row in rows.tolist())
        shares[block] = tuple((slots[rows] / slots.sum().clamp_min(1)).tolist())
        tensors |= {up: deltas[up][rows], down: deltas[down][rows]}
        if pi < 1:
            tensors[router] = (1 - pi) * deltas[router][rows]
        if pi > 0:
            state[router] = _personal_rows(state.get(router), resident, pi * deltas[router], num_experts)
        key = names.expert_tensor(block, "affinity")
        state[key] = affinity = _affinity(state.get(key), resident, result.probs[block], num_experts)
        order = torch.argsort(affinity, descending=True, stable=True).tolist()
        preferences[block] = tuple(m for m in order if affinity[m] != NEVER_HELD)
    return ClientUpdate(
        round=plan.round,
        client_id=plan.client_id,
        num_examples=result.num_examples,
        tensors=tensors,
        experts=experts,
        shares=shares,
        preferences=preferences,
        metrics=dict(result.metrics),
    ), state


def _trained_rows(up: Tensor, down: Tensor, slots: Tensor) -> Tensor:
    """Return the rows of the experts that received a token and a gradient; int64.

    A token is not enough. If the head reads one token, the other tokens of the last block have no gradient, and
    their experts would dilute the average with zeros.
    """
    moved = up.flatten(1).any(1) | down.flatten(1).any(1)
    return ((slots > 0) & moved).nonzero().flatten()


def _personal_rows(old: Tensor | None, resident: tuple[int, ...], change: Tensor, num_experts: int) -> Tensor:
    """Return P_n [M, d] after `change` [R, d] of the resident rows."""
    rows = torch.zeros(num_experts, change.shape[1]) if old is None else old.clone()
    rows[list(resident)] += change
    return rows


def _affinity(old: Tensor | None, resident: tuple[int, ...], probs: Tensor, num_experts: int) -> Tensor:
    """Return each expert's mean probability relative to uniform, [M], when the client last held it."""
    affinity = torch.full((num_experts,), NEVER_HELD) if old is None else old.clone()
    affinity[list(resident)] = (probs / probs.sum().clamp_min(1e-9) * len(resident)).float()
    return affinity
