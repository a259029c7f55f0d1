"""What a federated method decides: what is trained, what is sent, and how it is merged.

Rounds, engines and the client's training loop use a method only through the protocols of this module.
`registry.py` lists the methods.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from fftmoe.methods.balance import LocalSettings
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.merge.aggregate import Merge
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.methods.registry import Capabilities
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Experts, ServerState, Tensors


class Session(Protocol):
    """The local training of one client, from the loaded tensors to its update."""

    parameters: Mapping[str, nn.Parameter]
    """What the client trains, under the names of `fftmoe.records.names`."""

    def penalty(self, mask: Tensor | None) -> Tensor:
        """The method's auxiliary loss of the last forward pass, a scalar; `mask` [T] is False on padding."""
        ...

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """The update to send, and the client's new state."""
        ...


class Stack(Protocol):
    """The local training of C clients with the same budget. Every parameter has the clients as its first dimension."""

    parameters: Mapping[str, nn.Parameter]
    """What the clients train, [C, ...] each."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[C, B, classes] for a batch of C * B examples, the examples of one client after those of another."""
        ...

    def penalty(self, mask: Tensor) -> Tensor:
        """As `Session.penalty` for each client, [C]; `mask` [C, T], or [C, B] if every token of an example counts."""
        ...

    def finish(self, position: int, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """As `Session.finish` for the client at `position`. Must be called before the other clients train on."""
        ...


class Method(Protocol):
    """A federated method. On the server, its methods are pure: `init` and `aggregate` return a new state."""

    capabilities: ClassVar[Capabilities]
    """What the other packages have to know of the method."""

    def parameters(self, budget: Budget) -> int:
        """Number of adapter parameters that a client of this budget trains, without the head."""
        ...

    def init(self, model: Any) -> ServerState:
        """The state before the first round, from a freshly attached model, whose adapter adds nothing yet."""
        ...

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """The resident experts of every client of the cohort."""
        ...

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """The tensors that a client needs for its plan, and no others."""
        ...

    def session(
        self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors
    ) -> AbstractContextManager[Session]:
        """Load the downloaded tensors into the resident model and open the training session of a client."""
        ...

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """As `session` for several clients. Their plans differ only in client, seed and experts.

        Only called if `capabilities.stacks`.
        """
        ...

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """The next state and diagnostics, from updates in `client_id` order that are consumed one at a time."""
        ...

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """The update that is largest on the wire: zeros in the shapes that the client may upload."""
        ...

    def most_shares(self, plan: ClientPlan, max_tokens: int) -> float:
        """The largest possible sum of the shares of a block in an update; an example has up to `max_tokens` tokens."""
        ...

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Put the global model into `model` as a client of this budget would use it, with all experts."""
        ...

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Put into `model` what this client would use: what it downloaded, with what it keeps.

        The same as `install` with the plan's budget if a client keeps nothing that the model uses.
        """
        ...


class Defaults:
    """The members of `Method` that most methods have in common."""

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """Clients train one after another."""
        raise TypeError(f"{type(self).__name__} trains one client at a time; see `capabilities.stacks`")

    def most_shares(self, plan: ClientPlan, max_tokens: int) -> float:
        """Shares are fractions of one whole."""
        return 1.0


@dataclass(frozen=True)
class MethodParts:
    """Everything that a method can be made of; each method takes the parts that it needs.

    Attributes:
        budgets: client_id -> budget, for every client of the population.
        seed: of everything that the method draws at random.
        modules: path -> (d_in, d_out) of the linear layers with LoRA; empty for a model without.
        shape: shape of one expert.
        num_experts: M, the size of the pool in each block.
        optimizer: how the server applies a delta.
        merge: replaces the mean over the clients; None for the usual mean of the method.
        aggregation, activation_power: the usual mean of experts, see `WeightedSum`.
        local: what clients with experts do: router, balance loss.
        residents, explore, load_decay, weigh_load: see `FftMoe`.
    """

    budgets: Mapping[int, Budget]
    seed: int
    modules: Mapping[str, tuple[int, int]]
    shape: ExpertShape
    num_experts: int
    optimizer: ServerOptimizer
    merge: Merge | None
    aggregation: str
    activation_power: float
    local: LocalSettings
    residents: str
    explore: bool
    load_decay: float
    weigh_load: bool


@dataclass(frozen=True)
class CostMatch:
    """What decides how a method uses a tier that the recipe states in experts.

    Attributes:
        shape: shape of one expert.
        num_experts: M, the size of the pool.
        modules: path -> (d_in, d_out) of the linear layers with LoRA; empty for a model without.
        match: whether LoRA costs as many `parameters` as the experts, or as much `uplink`.
    """

    shape: ExpertShape
    num_experts: int
    modules: Mapping[str, tuple[int, int]]
    match: str


class MethodClass(Protocol):
    """The class of a method as a value: its capabilities, and how an instance is made."""

    @property
    def capabilities(self) -> Capabilities:
        """See `Method`."""
        ...

    def make(self, parts: MethodParts) -> Method:
        """The method over a population."""
        ...

    def fit(self, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """The tiers as the method uses them.

        Raises:
            InputError: a tier is too small for the method.
        """
        ...
