"""Solves the closed-form head in a run: asks the clients for feature statistics,
and computes the head from their sum.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fftmoe.engines.base import Fault
from fftmoe.errors import RunError
from fftmoe.head import ONE_LABEL, Answers, HeadSums
from fftmoe.methods.base import Method
from fftmoe.records import Budget, ClientUpdate, ServerState, Training
from fftmoe.rounds.exchange import Exchange
from fftmoe.server.apply import Counted
from fftmoe.server.solve import plan_sums, solve_head
from fftmoe.shown import count_of

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
        sizes: the number of examples of each client; all clients that can be reached are asked.
        hides_sizes: clients do not say how many examples are in their sums.
        fewest: clients below which nothing is computed.
        total: the sum of the clients' statistics; a bounded one where clients may be malicious.
        answers: what the head is fitted to.
    """

    exchange: Exchange
    method: Method
    due: Callable[[int], bool]
    budget: Budget
    training: Training
    sizes: Sequence[int] | np.ndarray
    seed: int
    hides_sizes: bool = False
    fewest: int = 1
    total: Callable[[Iterable[HeadSums]], HeadSums] = HeadSums.total
    answers: Answers = ONE_LABEL

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
            missing: list[int] = []
            noted = self._noting(itertools.chain([first], updates), missing)
            solved = solve_head(state, noted, self.total, self.answers)
            if updates.number >= self.fewest:
                if not state.round:
                    self._say(sum(missing))
                return solved
        if state.round:
            return state  # with the head of before
        few = "no client sent" if self.fewest == 1 else f"fewer than {count_of(self.fewest, 'client')} sent"
        reasons = describe_faults(self.exchange.ledger.new_faults)
        raise RunError(
            f"{few} the feature statistics from which the first head is computed ({reasons}); remove the cause, and "
            "start the run again"
        )

    def _reachable(self) -> Sequence[int]:
        absent, everyone = self.exchange.engine.absent(), range(len(self.sizes))
        return [client for client in everyone if client not in absent] if absent else everyone

    def _noting(self, updates: Iterable[ClientUpdate], missing: list[int]) -> Iterator[ClientUpdate]:
        """Pass the updates on, and note how many examples the sums of some clients leave out."""
        for update in updates:
            if not self.hides_sizes and update.num_examples < self.sizes[update.client_id]:
                missing.append(int(self.sizes[update.client_id]) - update.num_examples)
            yield update

    def _say(self, missing: int) -> None:
        """Tell the server's operator that the head knows less than the sites have."""
        if missing:
            logging.getLogger("fftmoe").warning(
                "the closed-form head is computed without %s, left out by sites of their feature statistics, because "
                "they have few rows of these labels (fewest_rows_of_label of their policies)",
                count_of(missing, "row"),
            )


def describe_faults(faults: Sequence[Fault]) -> str:
    """Name the last few faults, for a message."""
    return "; ".join(f"client {f.client_id} {f.kind}: {f.reason}" for f in faults[-3:]) or "no client at all"
