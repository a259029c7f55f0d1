"""Defines what all LoRA methods share: which client holds which factors, and how they are loaded, trained and sent.

A module with the frozen weight W computes W x + s B A x, with A [r, d_in] and B [d_out, r] (Hu et al., LoRA, arXiv
2106.09685). Its tensors are named `lora.{path}.A` and `lora.{path}.B`. The methods differ in how the server merges
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from fftmoe.adapter.low_rank import block_of_module, initial_a, initial_b, parameters_per_rank, truncate
from fftmoe.backbones.lora import load_factors
from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.base import CostMatch, Defaults, MethodParts
from fftmoe.methods.deltas import DeltaSession, widest, zeros
from fftmoe.methods.registry import Capabilities
from fftmoe.methods.shared_head import head_tensors, load_head
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors, names
from fftmoe.rng import generator
from fftmoe.shown import count_of

MATCHES = ("parameters", "uplink")
Modules = Mapping[str, tuple[int, int]]  # path -> (d_in, d_out)


@dataclass(frozen=True)
class LoraMethod(Defaults, ABC):
    """`LoraMethod` is federated LoRA without a rule for merging, which each subclass defines in `aggregate`.

    A client holds factors of its own rank for the modules in its blocks. Factors that a client has neither received nor
    kept are initialised as in PEFT: A is uniform, and B is zero. This A is drawn from the seed, so it is the same in
    every process and need not be sent.

    Attributes:
        budgets: client_id -> budget for every client of the population; `Budget.rank` is the client's rank r_n.
        modules: path -> (d_in, d_out), as `fftmoe.backbones.lora.lora_modules(model)` returns them.
        seed: seed of the initial A.
        trained: the factors, of "A" and "B", that a client trains.
        sent: the factors that a client sends.
    """

    budgets: Mapping[int, Budget]
    modules: Modules
    seed: int = 0

    capabilities: ClassVar[Capabilities] = Capabilities("low-rank")
    trained: ClassVar[str] = "AB"
    sent: ClassVar[str] = "AB"

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """Make the method for a population."""
        return cls(parts.budgets, parts.modules, parts.seed)

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Return the tiers with the largest rank that costs no more than their experts."""
        return tuple(
            replace(
                tier,
                rank=matching_rank(
                    tier.name,
                    len(tier.blocks) * cost.shape.block_parameters(tier.experts),
                    cost.modules,
                    tier.blocks,
                    cost.match,
                    cls.sent,
                ),
            )
            for tier in tiers
        )

    def rank(self, budget: Budget) -> int:
        """Return the rank of a client with this budget."""
        return budget.rank

    def parameters(self, budget: Budget) -> int:
        """Return the number of parameters in the factors that a client with this budget trains."""
        return self.rank(budget) * parameters_per_rank(own_modules(self.modules, budget.blocks).values(), self.trained)

    def init(self, model: Any) -> ServerState:
        """Return the state before the first round: shared factors of the largest rank of any client, and the head."""
        assert all(budget.rank > 0 for budget in self.budgets.values()), "every budget needs a rank"
        tensors = head_tensors(model)
        rank = max(self.rank(budget) for budget in self.budgets.values())
        for path in self.modules:
            first = {"A": self.first_a(path, rank, round=0), "B": self.first_b(path, rank)}
            tensors |= {names.lora_tensor(path, factor): first[factor] for factor in self.sent}
        return ServerState(round=0, tensors=tensors)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Return no experts for any client, because LoRA has none."""
        return {client_id: {} for client_id in cohort}

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Return the head, and the shared factors of the client's modules at its rank."""
        tensors = {name: t for name, t in state.tensors.items() if names.is_head(name)}
        rank = self.rank(plan.budget)
        for path in own_modules(self.modules, plan.budget.blocks):
            for factor in self.sent:
                name = names.lora_tensor(path, factor)
                tensors[name] = truncate(state.tensors[name], factor, rank)
        return tensors

    def start(self, tensors: Tensors, budget: Budget, round: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the factors (A, B) by path with which a client of this budget starts a round.

        They come from `tensors`, or are initialised as in PEFT where `tensors` lacks them.
        """
        factors, rank = {}, self.rank(budget)
        for path in own_modules(self.modules, budget.blocks):
            a, b = (tensors.get(names.lora_tensor(path, factor)) for factor in "AB")
            a = self.first_a(path, rank, round) if a is None else truncate(a, "A", rank)
            b = self.first_b(path, rank) if b is None else truncate(b, "B", rank)
            factors[path] = (a, b)
        return factors

    def first_a(self, path: str, rank: int, round: int) -> Tensor:
        """Return the initial A, [rank, d_in], which is the same in every round."""
        return initial_a(rank, self.modules[path][0], generator(self.seed, "lora", path))

    def first_b(self, path: str, rank: int) -> Tensor:
        """Return the initial B, zeros of [d_out, rank], with which the adapter adds nothing."""
        return initial_b(rank, self.modules[path][1])

    @contextmanager
    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Iterator[DeltaSession]:
        """Load the client's factors and head and train them; kept tensors take precedence over downloaded ones."""
        tensors = {**tensors, **client_state}
        loaded = load_factors(model, self.start(tensors, plan.budget, plan.round))
        parameters = {name: p for name, p in named_factors(loaded).items() if names.parse(name).part in self.trained}
        parameters |= load_head(model, tensors, plan.training.train_head)
        yield DeltaSession(plan, parameters, kept={name for name in parameters if not self.shares(name)})

    def shares(self, name: str) -> bool:
        """Return whether a trained tensor of this name is sent; every other trained tensor stays on the client."""
        return names.is_head(name) or names.parse(name).part in self.sent

    @abstractmethod
    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Merge the updates of a round, see `Method.aggregate`."""

    def received(self, state: ServerState, update: ClientUpdate) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the client's trained factors (A, B) by path, float64: the initial factors plus the client's delta."""
        factors = {}
        for path, (a, b) in self.start(state.tensors, self.budgets[update.client_id], update.round).items():
            delta_a, delta_b = (update.tensors[names.lora_tensor(path, factor)] for factor in "AB")
            factors[path] = (a.double() + delta_a.double(), b.double() + delta_b.double())
        return factors

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Return an update with all shared factors of the client's modules, and with the head if it is trained."""
        shapes = {n: tuple(t.shape) for n, t in download.items() if names.is_head(n) and plan.training.train_head}
        rank, own = self.rank(plan.budget), own_modules(self.modules, plan.budget.blocks)
        shapes |= named_factors({path: ((rank, d_in), (d_out, rank)) for path, (d_in, d_out) in own.items()})
        return widest(plan, {name: zeros(shape) for name, shape in shapes.items() if self.shares(name)})

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Load the factors with which a client of this budget starts; only the blocks of the budget are adapted."""
        load_factors(model, self.start(tensors, budget, round=0))
        load_head(model, tensors)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Load the client's model as `install` does, with kept tensors instead of downloaded ones."""
        self.install(model, {**tensors, **client_state}, plan.budget)


def named_factors(factors: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Name the factors (A, B) of each path `lora.{path}.A` and `lora.{path}.B`."""
    return {
        names.lora_tensor(path, factor): t
        for path, pair in factors.items()
        for factor, t in zip("AB", pair, strict=True)
    }


def rank_of(update: ClientUpdate) -> int | None:
    """Return the rank of the LoRA factors in an update; None if it has none."""
    for name, delta in update.tensors.items():
        parsed = names.parse(name)
        if parsed.family == "lora":
            return delta.shape[0 if parsed.part == "A" else 1]
    return None


def own_modules(modules: Modules, blocks: Iterable[int]) -> dict[str, tuple[int, int]]:
    """Return the modules that lie in these blocks."""
    wanted = set(blocks)
    return {path: dims for path, dims in modules.items() if block_of_module(path) in wanted}


def matching_rank(
    tier: str, parameters: int, modules: Modules, blocks: Sequence[int], match: str = "parameters", sent: str = "AB"
) -> int:
    """Return the largest LoRA rank that costs no more than `parameters`.

    Args:
        tier: name of the tier, for the error message.
        parameters: the number of parameters that the tier may hold in all of its blocks.
        modules: path -> (d_in, d_out) for the whole model; only the modules in `blocks` count.
        blocks: blocks of the tier.
        match: which factors count. `parameters` counts both. `uplink` counts those that are sent, so that a method that
            sends one factor gets a larger rank for the same upload.
        sent: the factors that the method sends, see `LoraMethod.sent`.

    Raises:
        InputError: rank 1 costs more than `parameters`, or `match` is unknown.
    """
    if match not in MATCHES:
        raise InputError(f"unknown match {match!r}{did_you_mean(match, MATCHES)}")
    cost = parameters_per_rank(own_modules(modules, blocks).values(), sent if match == "uplink" else "AB")
    if cost == 0 or parameters < cost:
        raise InputError(
            f"budget {tier!r} allows {count_of(parameters // len(blocks), 'parameter')} per block and cannot hold LoRA "
            f"of rank 1, which needs {count_of(cost // len(blocks), 'parameter')} per block; raise the tier's experts, "
            "or adapt fewer modules"
        )
    return parameters // cost
