"""Local only: every client trains its own copy for ever and shares nothing, what a federation has to beat."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from fftmoe.methods.base import CostMatch, Defaults, Method, MethodParts, Session
from fftmoe.methods.deltas import losses_of, mean_loss, widest
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.registry import METHODS, Capabilities
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors


@dataclass(frozen=True)
class LocalOnly(Defaults):
    """Another method's model and local training, without its federation.

    The server's state never changes, so residents and what is downloaded are those of the start. A client begins
    from the download and afterwards continues from its own tensors; the download comes every time all the same,
    because the server does not know who has begun, and is counted.

    Attributes:
        inner: whose adapter is trained. What its clients keep must lie in what they train (as is so with all methods
            here but for FLAME's output scale, which starts at 1 in every round).
    """

    inner: Method

    capabilities: ClassVar[Capabilities] = METHODS["local-only"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """The local training of FFT-MoE."""
        return cls(FftMoe.make(parts))

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """The tiers as the recipe states them."""
        return tuple(tiers)

    def parameters(self, budget: Budget) -> int:
        """As the inner method."""
        return self.inner.parameters(budget)

    def init(self, model: Any) -> ServerState:
        """Where every client begins."""
        return self.inner.init(model)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """The inner method's first assignment: the state holds no statistics, and never will."""
        return self.inner.assign(state, cohort)

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Where the client begins."""
        return self.inner.download(state, plan)

    @contextmanager
    def session(
        self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors
    ) -> Iterator["LocalSession"]:
        """Trains on from the client's own tensors."""
        own = client_state or tensors
        with self.inner.session(model, plan, own, {}) as session:
            yield LocalSession(session, own)

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Nothing is merged."""
        losses = [loss for update in updates for loss in losses_of(update)]
        return replace(state, round=state.round + 1), {"train_loss": mean_loss(losses)}

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Metrics alone."""
        return widest(plan, {})

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """The model before any training."""
        self.inner.install(model, tensors, budget)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """The client's own model, the downloaded one where it has not begun."""
        # Opening a session is what puts a client's tensors into the model; they stay when it is closed.
        with self.inner.session(model, plan, client_state or tensors, {}):
            pass


class LocalSession:
    """The inner session, of which only metrics are sent and everything trained is kept."""

    def __init__(self, inner: Session, own: Tensors) -> None:
        self.inner, self.own = inner, own
        self.parameters: Mapping[str, nn.Parameter] = inner.parameters

    def penalty(self, mask: Tensor | None) -> Tensor:
        """The inner method's."""
        return self.inner.penalty(mask)

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Nothing but metrics, and the client's tensors as they are now."""
        update, _ = self.inner.finish(num_examples, metrics)
        trained = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        return replace(update, tensors={}, experts={}, shares={}, preferences={}), {**self.own, **trained}
