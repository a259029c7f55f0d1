"""FFT-MoE on the server: sparse mixture-of-experts adapters, averaged per expert (arXiv 2508.18663; docs/math.md).

Every client holds a personal subset of a pool of M experts per block; the pool is the global model.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import torch

from fftmoe import adapter
from fftmoe.methods.aggregate import Merge, WeightedSum
from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.base import CostMatch, Defaults, MethodParts, Stack
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.deltas import LONGEST_FLOAT, losses_of, mean_loss, widest, zeros
from fftmoe.methods.fft_moe_client import FftMoeSession, hold_nothing, load_projections
from fftmoe.methods.fft_moe_stack import FftMoeStack
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.methods.residents import Design, balanced_design, personal_residents
from fftmoe.methods.server_optimizer import ServerOptimizer
from fftmoe.methods.shared_head import head_tensors, load_head
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors, names


@dataclass(frozen=True)
class FftMoe(Defaults):
    """The method as a value; every part that an ablation switches is a field.

    Attributes:
        budgets: client_id -> budget, every client of the population.
        shape: d and h of one expert.
        num_experts: M, the size of the pool per block.
        local: what happens on the client (router mode, balance loss).
        merge: how the updates of a round become one delta.
        residents: `personal` (from routing statistics) or `balanced` (a fixed seeded design).
        explore: keep one resident slot for the expert that fewest clients hold.
        load_decay: rho of the moving average of global expert load.
        weigh_load: clients count in it by their examples; else each as one.
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
        """FFT-MoE over a population."""
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
        """The tiers as the recipe states them."""
        return tuple(tiers)

    def parameters(self, budget: Budget) -> int:
        """Of the resident experts, their router rows, and the shared expert."""
        return len(budget.blocks) * self.shape.block_parameters(budget.experts)

    def init(self, model: Any) -> ServerState:
        """The freshly initialised pool and head, and a uniform load."""
        tensors = head_tensors(model)
        load: Tensors = {}
        for block, moe in adapter.blocks(model).items():
            own = dict(zip(names.expert_tensors(block), (moe.router.weight, moe.up, moe.down), strict=True))
            if moe.shared_up is not None and moe.shared_down is not None:
                own |= zip(names.shared_tensors(block), (moe.shared_up, moe.shared_down), strict=True)
            tensors |= {name: p.detach().cpu().clone() for name, p in own.items()}
            load[names.load_of_block(block)] = torch.full(
                (self.num_experts,), 1 / self.num_experts, dtype=torch.float64
            )
        tensors |= {name: p.detach().cpu().clone() for name, p in adapter.shared_projections(model).items()}
        return ServerState(round=0, tensors=tensors, load=load)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Resident experts of the cohort (docs/math.md, Residents)."""
        preferences = state.preferences if self.residents == "personal" else {}
        budgets = {client_id: self.budgets[client_id] for client_id in cohort}
        return personal_residents(budgets, preferences, self._design, self.num_experts, self.explore)

    @cached_property
    def _design(self) -> Design:
        """The same in every round, and takes the whole population to make."""
        return balanced_design(self.budgets, self.num_experts, self.seed)

    def __getstate__(self) -> dict[str, Any]:
        """Without the design: worker processes, to which methods are sent, assign nothing."""
        return {name: value for name, value in vars(self).items() if name != "_design"}

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """The head, and for each of the client's blocks its resident experts with their load, and the shared one."""
        tensors = {name: t for name, t in state.tensors.items() if names.is_head(name)}
        for block, experts in plan.experts.items():
            ids = torch.tensor(experts, dtype=torch.long)
            tensors |= {name: state.tensors[name][ids] for name in names.expert_tensors(block)}
            tensors |= {name: t for name, t in state.tensors.items() if names.shared_block_of(name) == block}
            tensors[names.expert_tensor(block, "load")] = state.load[names.load_of_block(block)][ids].float()
        return tensors

    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> FftMoeSession:
        """A client's local training (`fft_moe_client`)."""
        return FftMoeSession(model, plan, tensors, client_state, self.local, self.num_experts)

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """The local training of several clients at once (`fft_moe_stack`)."""
        return FftMoeStack(model, plans, tensors, client_states, self.local, self.num_experts)

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Of a client that trained all its resident experts and knows the whole pool; lengths as on the wire."""
        kept = {"load", "router"} if self.local.kept_fraction == 1 else {"load"}
        own = [name for name in download if not (names.is_expert(name) and names.parse(name).part in kept)]
        own = [name for name in own if plan.training.train_head or not names.is_head(name)]
        update = widest(plan, {name: zeros(download[name].shape) for name in own})
        everything = tuple(range(self.num_experts))
        shares = {block: (LONGEST_FLOAT,) * len(ids) for block, ids in plan.experts.items()}
        preferences = dict.fromkeys(plan.experts, everything)
        return replace(update, experts=plan.experts, shares=shares, preferences=preferences)

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Average every expert over the clients that trained it; update the load and the clients' preferences."""
        mean = self.merge({name: t.shape for name, t in state.tensors.items()})
        preferences = dict(state.preferences)
        routed = {name: torch.zeros_like(u) for name, u in state.load.items()}
        losses: list[float] = []
        for update in updates:
            mean.add(update)
            preferences[update.client_id] = update.preferences
            losses += losses_of(update)
            for block, experts in update.experts.items():
                shares = torch.tensor(update.shares[block], dtype=torch.float64)
                routed[names.load_of_block(block)][list(experts)] += (
                    update.num_examples if self.weigh_load else 1
                ) * shares
        deltas, trained = mean.mean()
        tensors, optimizer = self.optimizer.apply(state.tensors, deltas, trained, state.optimizer)
        load = {name: self._moving_load(u, routed[name]) for name, u in state.load.items()}
        new = {"tensors": tensors, "optimizer": optimizer, "load": load, "preferences": preferences}
        return replace(state, round=state.round + 1, **new), {
            "train_loss": mean_loss(losses),
            "expert_load_cv": load_variation(routed),
            "experts_trained": _fraction_trained(trained),
        }

    def _moving_load(self, load: torch.Tensor, routed: torch.Tensor) -> torch.Tensor:
        if routed.sum() == 0:  # no client of the cohort adapts this block
            return load
        return self.load_decay * load + (1 - self.load_decay) * routed / routed.sum()

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """The whole pool, used as this budget would: its top_k, in its blocks."""
        for block, moe in adapter.blocks(model).items():
            if block not in budget.blocks:
                hold_nothing(moe, budget.top_k)
                continue
            router, up, down = (tensors[name] for name in names.expert_tensors(block))
            moe.load_experts(router, up, down, budget.top_k)
            if moe.shared_up is not None:
                moe.load_shared(*(tensors[name] for name in names.shared_tensors(block)))
        load_projections(model, {n: t for n, t in tensors.items() if names.shared_block_of(n) in budget.blocks})
        load_head(model, tensors)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """The client's resident experts, and the router with its own rows."""
        # Opening a session is what puts a client's experts into the model; they stay when it is closed.
        self.session(model, plan, tensors, client_state)


def load_variation(load: Tensors) -> float:
    """Coefficient of variation of expert load, averaged over the blocks; 0 when all experts are used alike."""
    values = [float(u.std(correction=0) / u.mean()) for u in load.values() if u.sum() > 0]
    return sum(values) / len(values) if values else 0.0


def _fraction_trained(trained: Tensors) -> float:
    rows = [mask for name, mask in trained.items() if names.parse(name).part == "up"]
    return float(torch.cat(rows).double().mean()) if rows else 0.0
