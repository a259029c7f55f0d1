"""Head only: the backbone stays as it is and federated averaging trains its classification head (a linear probe)."""

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
    """Every client trains and sends the head. An adapter that the model has stays as attached, which adds nothing."""

    merge: Merge = WeightedSum

    capabilities: ClassVar[Capabilities] = METHODS["head-only"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """The method with the mean of the recipe."""
        return cls(parts.merge or WeightedSum)

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """The tiers as the recipe states them; they cost the same."""
        return tuple(tiers)

    def parameters(self, budget: Budget) -> int:
        """None beside the head."""
        return 0

    def init(self, model: Any) -> ServerState:
        """The model's head.

        Raises:
            InputError: it has none, as a language model.
        """
        tensors = head_tensors(model)
        if not tensors:
            raise InputError("method 'head-only' trains a classification head, and this model has none; choose another")
        return ServerState(round=0, tensors=tensors)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """There are no experts."""
        return {client_id: {} for client_id in cohort}

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """The head."""
        return dict(state.tensors)

    @contextmanager
    def session(self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors) -> Iterator[DeltaSession]:
        """Trains the head; nothing at all where the head is solved."""
        yield DeltaSession(plan, load_head(model, tensors, plan.training.train_head))

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Averaged by examples."""
        mean = DeltaMean(state, merge=self.merge)
        for update in updates:
            mean.add(update)
        return mean.finish()

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """The head where it is trained."""
        return widest(plan, {n: zeros(t.shape) for n, t in download.items() if plan.training.train_head})

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """The head; the same for all budgets."""
        load_head(model, tensors)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """The same for all clients."""
        load_head(model, tensors)
