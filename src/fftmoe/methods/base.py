"""What a federated method decides: what is trained, what is sent, and how it is merged.

Rounds, engines and the client's training loop know a method only through these two protocols.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeGuard

from torch import Tensor, nn

from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors


class Session(Protocol):
    """One client's local training, from the loaded tensors to the update."""

    parameters: Mapping[str, nn.Parameter]
    """What the client trains, under the names of `fftmoe.records`."""

    def penalty(self, mask: Tensor | None) -> Tensor:
        """The method's auxiliary loss of the last forward pass, a scalar; `mask` [T] is False on padding."""
        ...

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """The update to send and the client's new state."""
        ...


class Stack(Protocol):
    """The local training of C clients with the same budget, whose parameters have C in front of every shape."""

    parameters: Mapping[str, nn.Parameter]
    """What the clients train, [C, …] each."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[C, B, classes] for a batch of C * B examples, the clients' one after another."""
        ...

    def penalty(self, mask: Tensor) -> Tensor:
        """As `Session.penalty`, of each client [C]; `mask` [C, T], or [C, B] where every token of an example counts."""
        ...

    def finish(self, position: int, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """As `Session.finish`, of the client at `position`; to be called before the others train on without it."""
        ...


class Method(Protocol):
    """A federated method. Pure on the server's side: a new state for every call."""

    @property
    def name(self) -> str:
        """As recipes call it."""
        ...

    @property
    def personal(self) -> bool:
        """Whether there is no global model to speak of: accuracy is then the mean over the clients' own models."""
        ...

    def parameters(self, budget: Budget) -> int:
        """Adapter parameters that a client of this budget trains; the head is not counted."""
        ...

    def init(self, model: Any) -> ServerState:
        """The state before the first round, from a freshly attached model, whose adapter adds nothing yet."""
        ...

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Resident experts of every client of the cohort."""
        ...

    def whole(self, budget: Budget) -> Experts:
        """The experts with which a client has the global model as this budget would use it: all of its blocks'."""
        ...

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """The tensors that a client needs for its plan, and no others."""
        ...

    def session(
        self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors
    ) -> AbstractContextManager[Session]:
        """Load the downloaded tensors into the resident model and open a client's training session."""
        ...

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Merge updates, which arrive in `client_id` order and are consumed one at a time."""
        ...

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """An update at its largest on the wire, to forecast bytes: zeros of the shapes the client may upload."""
        ...

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Put the global model into `model` as a client of this budget would use it, with all experts."""
        ...

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Put into `model` what this very client would use: what it downloaded, with what it keeps.

        Where clients keep nothing that matters to the model, the same as `install` with the plan's budget.
        """
        ...


class StackingMethod(Method, Protocol):
    """A method that can train several clients at once on one backbone."""

    @property
    def stacks(self) -> bool:
        """Whether it can."""
        ...

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """As `Method.session`, for clients whose plans differ in nothing but the client, its seed and its experts."""
        ...


def most_shares(method: Method, plan: ClientPlan, max_tokens: int) -> float:
    """What the shares of a block in a client's update may sum to: 1, unless they are not parts of a whole.

    Args:
        max_tokens: of an example.
    """
    own = getattr(method, "most_shares", None)
    return 1.0 if own is None else own(plan, max_tokens)


def can_stack(method: Method) -> TypeGuard[StackingMethod]:
    """Whether the method trains several clients at once."""
    return bool(getattr(method, "stacks", False))
