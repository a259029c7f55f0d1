"""The method `head-only` trains the classification head on a frozen backbone by federated averaging (a linear probe).

The server computes theta + sum_n |D_n| Delta_n / sum_n |D_n| over the head (FedAvg; McMahan et al., arXiv 1602.05629).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from fftmoe.errors import InputError
from fftmoe.methods.base import CostMatch, Defaults, MethodParts
from fftmoe.methods.deltas import DeltaMean, DeltaSession, widest, zeros
from fftmoe.methods.merge.aggregate import Merge, WeightedSum
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.methods.shared_head import head_tensors, load_head
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors


@dataclass(frozen=True)
class HeadOnly(Defaults):
    """`HeadOnly` lets every client train and send the head.

    An adapter in the model keeps its initial weights, with which it adds nothing.

    Attributes:
        merge: how the server computes the mean delta.
    """

    merge: Merge = WeightedSum

    capabilities: ClassVar[Capabilities] = METHODS["head-only"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """Make the method with the aggregator of the recipe."""
        return cls(parts.merge or WeightedSum)

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Return the tiers as the recipe states them; all of them train the same head."""
        return tuple(tiers)

    def parameters(self, budget: Budget) -> int:
        """Return zero, because the method trains no adapter."""
        return 0

    def init(self, model: Any) -> ServerState:
        """Return a state with the model's head.

        Raises:
            InputError: the model has no head; it is a language model, for example.
        """
        tensors = head_tensors(model)
        if not tensors:
            raise InputError("method 'head-only' trains a classification head, and this model has none; choose another")
        return ServerState(round=0, tensors=tensors)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Return no experts for any client, because the method trains none."""
        return {client_id: {} for client_id in cohort}

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Return the head."""
        return dict(state.tensors)

    @contextmanager
    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Iterator[DeltaSession]:
        """Load the head and train it; train nothing if the plan does not train the head."""
        yield DeltaSession(plan, load_head(model, tensors, plan.training.train_head))

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Average the heads, weighted by examples."""
        mean = DeltaMean(state, merge=self.merge)
        for update in updates:
            mean.add(update)
        return mean.finish()

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Return an update with the head if it is trained."""
        return widest(plan, {n: zeros(t.shape) for n, t in download.items() if plan.training.train_head})

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Load the head, which is the same for all budgets."""
        load_head(model, tensors)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Load the head, which is the same for all clients."""
        load_head(model, tensors)
