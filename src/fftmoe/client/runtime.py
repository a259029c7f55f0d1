"""A client process: one resident backbone that serves any number of clients, message in, message out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fftmoe.client.update import update_client
from fftmoe.data import TokenizedText
from fftmoe.head import Head
from fftmoe.methods.base import Method
from fftmoe.records import Tensors, pack_update, unpack_plan


class ClientStates(Protocol):
    """Where clients keep what never leaves them (personal router rows, affinities)."""

    def load(self, client_id: int) -> Tensors:
        """Empty for a client that has kept nothing yet."""
        ...

    def save(self, client_id: int, state: Tensors) -> None:
        """Replace what the client keeps, atomically."""
        ...


@dataclass(frozen=True)
class ClientRuntime:
    """Runs the client's update for whichever client a message names."""

    model: Any
    method: Method
    head: Head
    examples: TokenizedText
    partition: Sequence[np.ndarray]
    states: ClientStates
    measure: Callable[[Any], float]

    def __call__(self, message: bytes) -> bytes:
        """Plan and tensors in, update out; a plan of round 0 trains alone and keeps no state."""
        plan, tensors = unpack_plan(message)
        alone = plan.round == 0
        update, state = update_client(
            self.model,
            self.method,
            self.head,
            plan,
            tensors,
            {} if alone else self.states.load(plan.client_id),
            self.examples,
            self.partition[plan.client_id],
            self.measure if alone else None,
        )
        if not alone:
            self.states.save(plan.client_id, state)
        return pack_update(update)
