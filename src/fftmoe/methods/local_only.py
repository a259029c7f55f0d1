"""The method `local-only` lets every client train its own model and share nothing.

It is the baseline of local training: theta_n <- theta_n + Delta_n on every client n. A federated method is useful only
if it reaches a higher accuracy.
"""

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
    """`LocalOnly` uses the model and the local training of another method, and merges nothing.

    The state of the server never changes, so resident experts and downloads stay the initial ones. A client starts from
    its first download and then continues from its own tensors. The download is still sent and counted in every round,
    because the server does not know which clients have trained before.

    Attributes:
        inner: the method whose model is trained. The tensors that its clients keep must be among those that they train.
            All methods of this package satisfy this, except for FLAME's output scale, which would start at 1 in every
            round.
    """

    inner: Method

    capabilities: ClassVar[Capabilities] = METHODS["local-only"].capabilities

    @classmethod
    def make(cls, parts: MethodParts) -> Self:
        """Make the method with the local training of FFT-MoE."""
        return cls(FftMoe.make(parts))

    @classmethod
    def fit(cls, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Return the tiers as the recipe states them."""
        return tuple(tiers)

    def parameters(self, budget: Budget) -> int:
        """Return the number of parameters that the inner method trains."""
        return self.inner.parameters(budget)

    def init(self, model: Any) -> ServerState:
        """Return the inner method's initial state, from which every client starts."""
        return self.inner.init(model)

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Return the inner method's first assignment; the state never contains statistics that would change it."""
        return self.inner.assign(state, cohort)

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Return the inner method's download of the initial state."""
        return self.inner.download(state, plan)

    @contextmanager
    def session(
        self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors
    ) -> Iterator["LocalSession"]:
        """Continue training from the client's own tensors, or start from the download."""
        own = client_state or tensors
        with self.inner.session(model, plan, own, {}) as session:
            yield LocalSession(session, own)

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Merge nothing: count the round and return the mean training loss."""
        losses = [loss for update in updates for loss in losses_of(update)]
        return replace(state, round=state.round + 1), {"train_loss": mean_loss(losses)}

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Return an update with metrics only."""
        return widest(plan, {})

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Load the initial model, before any training."""
        self.inner.install(model, tensors, budget)

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Load the client's own model, or the downloaded one if the client has not trained yet."""
        # A session loads the client's tensors into the model, and they stay there after the session has ended.
        with self.inner.session(model, plan, client_state or tensors, {}):
            pass


class LocalSession:
    """`LocalSession` wraps a session so that only metrics are sent and all trained tensors stay on the client.

    Args:
        inner: the session that trains.
        own: the tensors from which the client started.
    """

    def __init__(self, inner: Session, own: Tensors) -> None:
        self.inner, self.own = inner, own
        self.parameters: Mapping[str, nn.Parameter] = inner.parameters

    def penalty(self, mask: Tensor | None) -> Tensor:
        """Return the inner session's penalty."""
        return self.inner.penalty(mask)

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return an update with metrics only, and a state with all of the client's current tensors."""
        update, _ = self.inner.finish(num_examples, metrics)
        trained = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        return replace(update, tensors={}, experts={}, shares={}, preferences={}), {**self.own, **trained}
