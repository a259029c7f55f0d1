"""Defines the protocol of a federated method, which decides what clients train and send and how the server merges it.

Rounds, engines and the client's training loop use a method only through the protocols of this module. `registry.py`
lists the methods.
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
    """`Session` is the local training of one client, from the loaded tensors to the client's update."""

    parameters: Mapping[str, nn.Parameter]
    """The parameters that the client trains, under the names of `fftmoe.records.names`."""

    def penalty(self, mask: Tensor | None) -> Tensor:
        """Return the auxiliary loss of the last forward pass, a scalar; call it once per step.

        Args:
            mask: bool [T], False on padding; None: every token counts.
        """
        ...

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return the update to send and the client's new state."""
        ...


class Stack(Protocol):
    """`Stack` is the local training of C clients with the same budget in one batch."""

    parameters: Mapping[str, nn.Parameter]
    """The parameters that the clients train; each has the clients as its first dimension, [C, ...]."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return logits [C, B, classes] for a batch of C * B examples, in which each client's examples are adjacent."""
        ...

    def penalty(self, mask: Tensor) -> Tensor:
        """Return the auxiliary loss of each client, [C], see `Session.penalty`.

        Args:
            mask: bool [C, T], False on padding; or bool [C, B] if every token of an example counts.
        """
        ...

    def finish(self, position: int, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return the update and the new state of the client at `position`, see `Session.finish`.

        The call must come before the other clients take another step.
        """
        ...


class Method(Protocol):
    """`Method` is a federated method. On the server it is pure: `init` and `aggregate` return a new state."""

    capabilities: ClassVar[Capabilities]
    """The properties of the method on which other packages depend."""

    def parameters(self, budget: Budget) -> int:
        """Return the number of adapter parameters that a client with this budget trains, without the head."""
        ...

    def init(self, model: Any) -> ServerState:
        """Return the state before the first round, from a model with a fresh adapter that adds nothing yet."""
        ...

    def assign(self, state: ServerState, cohort: Sequence[int]) -> dict[int, Experts]:
        """Return the resident experts of every client of the cohort."""
        ...

    def download(self, state: ServerState, plan: ClientPlan) -> Tensors:
        """Return exactly the tensors that a client needs for its plan."""
        ...

    def session(
        self, model: Any, plan: ClientPlan, tensors: Tensors, client_state: Tensors
    ) -> AbstractContextManager[Session]:
        """Load the downloaded tensors into the process's model and open the training session of a client."""
        ...

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """Open the training session of several clients, whose plans differ only in client, seed and experts.

        It must do the same as `session` does for each client. It is called only if `capabilities.stacks` is true and
        `stack_follows_session`.
        """
        ...

    def aggregate(self, state: ServerState, updates: Iterable[ClientUpdate]) -> tuple[ServerState, dict[str, Any]]:
        """Return the next state and diagnostics, from updates in `client_id` order that are read one after another."""
        ...

    def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
        """Return the update that is largest on the wire, with zeros in all shapes that the client may upload."""
        ...

    def most_shares(self, plan: ClientPlan, max_tokens: int) -> float:
        """Return the largest possible sum of the shares of a block; an example has up to `max_tokens` tokens."""
        ...

    def install(self, model: Any, tensors: Tensors, budget: Budget) -> None:
        """Load the global model into `model` as a client with this budget uses it, with all experts."""
        ...

    def personalize(self, model: Any, tensors: Tensors, plan: ClientPlan, client_state: Tensors) -> None:
        """Load a client's personal model into `model`, from the tensors that it downloaded and those that it keeps.

        The result equals `install` with the plan's budget if the client keeps no tensor that the model uses.
        """
        ...


def stack_follows_session(method: Method) -> bool:
    """Return whether the method's `stack` was written for its `session`, so that it does the same faster.

    `stack` must come from the same class as `session`, or from a class that knows it: a subclass. Who overrides
    `session` alone has changed local training, and an inherited `stack` would train without that change. The same holds
    for a wrapper with a `session` of its own that hands everything else on to another method.
    """
    homes = [_home(method, name) for name in ("session", "stack")]
    if homes[0] is not None or homes[1] is not None:
        return homes[0] is not None and homes[1] is not None and homes[1] <= homes[0]
    owners = [getattr(getattr(method, name), "__self__", None) for name in ("session", "stack")]
    inner = owners[0]  # both are handed on
    return inner is not None and inner is owners[1] and inner is not method and stack_follows_session(inner)


def _home(method: Any, name: str) -> int | None:
    """Return where an attribute is defined: -1 on the object, else the place of the class in the search order."""
    if name in getattr(method, "__dict__", {}):
        return -1
    return next((place for place, cls in enumerate(type(method).__mro__) if name in vars(cls)), None)


class Defaults:
    """`Defaults` implements the members of `Method` that most methods share."""

    def stack(
        self, model: Any, plans: Sequence[ClientPlan], tensors: Sequence[Tensors], client_states: Sequence[Tensors]
    ) -> AbstractContextManager[Stack]:
        """Refuse stacked training: clients of this method train one after another.

        Raises:
            TypeError: always; callers must check `capabilities.stacks` first.
        """
        raise TypeError(f"{type(self).__name__} trains one client at a time; see `capabilities.stacks`")

    def most_shares(self, plan: ClientPlan, max_tokens: int) -> float:
        """Return 1, because shares are fractions of a client's routed slots."""
        return 1.0


@dataclass(frozen=True)
class MethodParts:
    """`MethodParts` holds all values from which methods are made; each method takes the ones that it needs.

    Attributes:
        budgets: client_id -> budget for every client of the population.
        seed: seed of everything that the method draws at random.
        modules: path -> (d_in, d_out) of the linear layers with LoRA; empty for a model without LoRA.
        shape: shape of one expert.
        num_experts: M, the size of the pool in each block.
        optimizer: how the server applies a delta.
        merge: makes the aggregator that replaces the method's own mean; None: the method's own mean.
        aggregation: kind of the mean over experts, see `WeightedSum.kind`.
        activation_power: exponent of the shares in that mean, see `WeightedSum.activation_power`.
        local: constants of the client's routing and of its auxiliary losses.
        residents: how resident experts are chosen, see `FftMoe.residents`.
        explore: whether clients have an exploration slot, see `FftMoe.explore`.
        load_decay: decay of the moving average of the load, see `FftMoe.load_decay`.
        weigh_load: whether examples weigh clients in the load, see `FftMoe.weigh_load`.
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
    """`CostMatch` holds the values by which a method converts a tier of experts to a tier of equal cost.

    Attributes:
        shape: shape of one expert.
        num_experts: M, the size of the pool in each block.
        modules: path -> (d_in, d_out) of the linear layers with LoRA; empty for a model without LoRA.
        match: the cost in which LoRA equals the experts: `parameters` or `uplink`.
    """

    shape: ExpertShape
    num_experts: int
    modules: Mapping[str, tuple[int, int]]
    match: str


class MethodClass(Protocol):
    """`MethodClass` is the class of a method: it has the method's capabilities and makes instances."""

    @property
    def capabilities(self) -> Capabilities:
        """Return the properties of the method on which other packages depend."""
        ...

    def make(self, parts: MethodParts) -> Method:
        """Make the method for a population."""
        ...

    def fit(self, tiers: Sequence[Budget], cost: CostMatch) -> tuple[Budget, ...]:
        """Return the tiers as the method uses them.

        Raises:
            InputError: a tier is too small for the method.
        """
        ...
