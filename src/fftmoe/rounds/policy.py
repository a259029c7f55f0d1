"""Defines what may differ from run to run within a round: who is drawn, what is waited for, and how updates are merged.

The loop asks the policy and branches on nothing. A robust run is plain here: its method was made with a robust
aggregator (`methods/`), its closed-form head with bounded sums (`rounds/closed_form.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fftmoe.engines.base import Engine
from fftmoe.methods.base import Method
from fftmoe.records import ClientUpdate, RoundPlan, ServerState
from fftmoe.report.load import load_row
from fftmoe.report.usage import Usage
from fftmoe.server.apply import Diagnostics, apply_round
from fftmoe.server.average import averaged, served
from fftmoe.server.cohort import choose_cohort, substitute


class Merging(Protocol):
    """Decides how a run's updates become the next state, and what may be written about a round.

    `PlainMerging` below; `SumsOnly` and `NoisySums` in `rounds/private.py`.
    """

    def reason_to_end(self, round: int) -> str | None:
        """Say why the run ends before this round; None to go on."""
        ...

    def before_sending(self, plan: RoundPlan) -> None:
        """Take note of the plan of a round before anything is sent."""
        ...

    def merge(
        self, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate], quorum: int
    ) -> tuple[ServerState, Diagnostics]:
        """Return the next state and what is written about the round; see `apply_round`."""
        ...


@dataclass(frozen=True)
class PlainMerging:
    """Lets the method aggregate the updates; the expert load and who trained which experts are written."""

    method: Method

    def reason_to_end(self, round: int) -> str | None:
        """Return None: a plain run ends after its last round."""
        return None

    def before_sending(self, plan: RoundPlan) -> None:
        """Do nothing, as nothing has to be counted."""

    def merge(
        self, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate], quorum: int
    ) -> tuple[ServerState, Diagnostics]:
        """See `Merging`."""
        usage = Usage(plan)
        state, diagnostics = apply_round(self.method, state, plan, usage.watch(updates), quorum)
        return state, {**diagnostics, **load_row(state.load), **usage.row()}


@dataclass(frozen=True)
class UniformCohort:
    """Draws the cohort uniformly, and replaces clients that are absent.

    Where clients can drop out, `extra` more are asked than the round needs (over-selection), so that stragglers and
    failures do not leave too few.
    """

    num_clients: int
    size: int
    seed: int
    engine: Engine
    extra: int = 0

    def __call__(self, round: int) -> tuple[int, ...]:
        """Return the cohort of a round, ascending."""
        size = self.size if self.engine.reliable else min(self.num_clients, self.size + self.extra)
        drawn = choose_cohort(self.num_clients, size, self.seed, round)
        return substitute(drawn, self.engine.absent(), self.num_clients, self.seed, round)


@dataclass(frozen=True)
class Policy:
    """Holds the policy of a run.

    Attributes:
        sample: from a round to its cohort.
        quorum: a round with fewer updates is void.
        enough: after so many valid updates a round waits for no more; None: it waits for all.
        average_decay: of the moving average of the global model over the rounds (`server/average.py`); 0 for none.
        last_round: after it the average takes the place of the global model.
    """

    sample: Callable[[int], tuple[int, ...]]
    merging: Merging
    quorum: int
    enough: int | None
    average_decay: float
    last_round: int

    def merge(
        self, state: ServerState, plan: RoundPlan, updates: Iterable[ClientUpdate]
    ) -> tuple[ServerState, dict[str, Any]]:
        """Merge the updates of a round, and move the average of the global model."""
        state, diagnostics = self.merging.merge(state, plan, updates, self.quorum)
        state = averaged(state, self.average_decay)
        return served(state) if state.round == self.last_round else state, diagnostics
