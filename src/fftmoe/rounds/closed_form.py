"""The closed-form head in a run: ask the clients for feature statistics, and compute the head from their sum."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from fftmoe.engines.base import Fault
from fftmoe.errors import RunError
from fftmoe.head import HeadSums
from fftmoe.methods.base import Method
from fftmoe.records import Budget, ServerState, Training
from fftmoe.rounds.exchange import Exchange
from fftmoe.server.apply import Counted
from fftmoe.server.solve import plan_sums, solve_head

SolveHead = Callable[[ServerState], ServerState]
"""From a state to the state whose head is up to date."""


def keep_head(state: ServerState) -> ServerState:
    """Return the state unchanged: its head is trained, or there is none."""
    return state


@dataclass(frozen=True)
class ClosedFormHead:
    """Solves the head of a run before the first round and after the rounds that are due.

    Attributes:
        due: whether the head is solved after this many rounds.
        budget: with which all clients measure the model.
        num_clients: of the population; all that can be reached are asked.
        fewest: clients below which nothing is computed.
        total: the sum of the clients' statistics; a bounded one where clients may be malicious.
    """

    exchange: Exchange
    method: Method
    due: Callable[[int], bool]
    budget: Budget
    training: Training
    num_clients: int
    seed: int
    fewest: int = 1
    total: Callable[[Iterable[HeadSums]], HeadSums] = HeadSums.total

    def __call__(self, state: ServerState) -> ServerState:
        """Return the state with a newly computed head, where one is due and enough clients answer.

        Raises:
            RunError: there is no head yet, and too few clients sent statistics.
        """
        if not self.due(state.round):
            return state
        plan = plan_sums(state, self._reachable(), self.budget, self.training, self.seed)
        updates = Counted(self.exchange.updates(plan, partial(self.method.download, state)))
        first = next(updates, None)
        if first is not None:
            solved = solve_head(state, itertools.chain([first], updates), self.total)
            if updates.number >= self.fewest:
                return solved
        if state.round:
            return state  # with the head of before
        few = "no client sent" if self.fewest == 1 else f"fewer than {self.fewest} clients sent"
        reasons = describe_faults(self.exchange.ledger.new_faults)
        raise RunError(
            f"{few} the feature statistics from which the first head is computed ({reasons}); remove the cause, and "
            "start the run again"
        )

    def _reachable(self) -> Sequence[int]:
        absent, everyone = self.exchange.engine.absent(), range(self.num_clients)
        return [client for client in everyone if client not in absent] if absent else everyone


def describe_faults(faults: Sequence[Fault]) -> str:
    """Name the last few faults, for a message."""
    return "; ".join(f"client {f.client_id} {f.kind}: {f.reason}" for f in faults[-3:]) or "no client at all"
