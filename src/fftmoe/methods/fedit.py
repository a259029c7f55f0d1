"""FedIT averages the LoRA factors A and B separately (Zhang et al., arXiv 2305.05644).

With p_n = |D_n| / sum |D_n|, the server computes A = sum_n p_n A_n and B = sum_n p_n B_n. The product B A differs from
sum_n p_n B_n A_n, which is the known bias of this method.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

from fftmoe.methods.base import MethodParts
from fftmoe.methods.deltas import DeltaMean
from fftmoe.methods.lora import LoraMethod
from fftmoe.methods.merge.aggregate import Merge, WeightedSum
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import Budget, ClientUpdate, ServerState


@dataclass(frozen=True)
class FedIt(LoraMethod):
    """`FedIt` computes the example-weighted mean of each factor.

    Factors of different ranks cannot be averaged, so every client uses the smallest rank of the population.

    Attributes:
        optimizer: how the server applies the mean delta.
        merge: how the server computes the mean delta.
    """

    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    merge: Merge = WeightedSum
    capabilities: ClassVar[Capabilities] = METHODS["fedit"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """Make the method for a population, with the server optimizer and the aggregator of the recipe."""
        return cls(
            parts.budgets, parts.modules, parts.seed, optimizer=parts.optimizer, merge=parts.merge or WeightedSum
        )

    def rank(self, budget: Budget) -> int:
        """Return the smallest rank of the population, which every client uses."""
        return self._smallest

    @cached_property
    def _smallest(self) -> int:
        """Return the smallest rank, computed once because it takes a pass over the whole population."""
        return min(own.rank for own in self.budgets.values())

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Average each tensor over the clients that sent it."""
        mean = DeltaMean(state, self.optimizer, self.merge)
        for update in updates:
            mean.add(update)
        return mean.finish()
