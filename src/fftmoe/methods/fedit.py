"""FedIT: A and B are averaged separately (Zhang et al., arXiv 2305.05644)."""

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
    """`A = sum p_n A_n`, `B = sum p_n B_n`, p_n by examples. `B A` is not `sum p_n B_n A_n`: the known bias.

    Factors of unlike rank cannot be averaged, so every client has the smallest rank of the population.
    """

    optimizer: ServerOptimizer = field(default_factory=ServerOptimizer)
    merge: Merge = WeightedSum
    capabilities: ClassVar[Capabilities] = METHODS["fedit"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """FedIT over a population, with the server optimizer and the mean of the recipe."""
        return cls(
            parts.budgets, parts.modules, parts.seed, optimizer=parts.optimizer, merge=parts.merge or WeightedSum
        )

    def rank(self, budget: Budget) -> int:
        """The smallest rank of the population, whatever the budget."""
        return self._smallest

    @cached_property
    def _smallest(self) -> int:
        """Asked for at every client, and takes the whole population to find."""
        return min(own.rank for own in self.budgets.values())

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Each tensor over the clients that sent it."""
        mean = DeltaMean(state, self.optimizer, self.merge)
        for update in updates:
            mean.add(update)
        return mean.finish()
