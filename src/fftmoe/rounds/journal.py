"""Keeps the journal of a run: one row per round, to `metrics.jsonl`, the trackers and the terminal;
then its checkpoint.
"""

import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ParamSpec, TypeVar

from fftmoe.engines.base import Fault
from fftmoe.errors import RunError
from fftmoe.records import ServerState
from fftmoe.records.client_names import Names, with_names
from fftmoe.report.load import LoadWatch, alarm_lines
from fftmoe.report.metric import Metric
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import Trackers
from fftmoe.rounds.before_and_after import STARTED, STARTS
from fftmoe.rounds.closed_form import describe_faults
from fftmoe.rounds.ledger import Ledger
from fftmoe.shown import count_of, quoted
from fftmoe.store import BAR, Ranking, RunFolder

MOST_VOID = 3  # void rounds in a row, after which a run ends

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


class Journal:
    """Writes the rows and checkpoints of a run; continues the `rows` of an interrupted one.

    In memory it keeps the rows without their tables by client, block and tier: thousands of rounds must not grow it.

    Args:
        hidden: values that are shown on the terminal and written nowhere, because a guarantee does not cover them.
        ranking: whose best round stays among the checkpoints; None where no round is kept for being the best.
        names: of the clients, with which lines on the terminal call them.
    """

    def __init__(
        self,
        folder: RunFolder,
        trackers: Trackers,
        progress: Progress,
        metric: Metric,
        rows: Sequence[dict[str, Any]] = (),
        hidden: Set[str] = frozenset(),
        ranking: Ranking | None = None,
        names: Names = None,
    ) -> None:
        self._hidden, self.ranking, self._names = hidden, ranking, names
        self.folder, self.trackers, self.progress, self.metric = folder, trackers, progress, metric
        self.rows = [_without_tables(row) for row in rows]
        self.ledger = Ledger.resumed(rows)
        self._watch = LoadWatch(rows)
        self._phases: dict[str, float] = {}
        self._lapped = time.perf_counter()
        self._started = self._lapped - (rows[-1].get("seconds", 0.0) if rows else 0.0)

    @property
    def seconds(self) -> float:
        """Return the seconds of the run so far; the time between an interruption and the resumption does not count."""
        return time.perf_counter() - self._started

    def timed(
        self,
        phase: str,
        function: Callable[Arguments, Returned],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Returned:
        """Call the function; the time since the last phase ended counts for this phase of the next row."""
        result = function(*args, **kwargs)
        self._lap(phase)
        return result

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._phases[phase] = round(self._phases.get(phase, 0.0) + now - self._lapped, 3)
        self._lapped = now

    def write(self, state: ServerState, diagnostics: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Write the row of a round: bytes and seconds are totals since the start; an unmeasured metric is None."""
        row = {
            "round": state.round,
            **self.metric.facts,
            self.metric.name: metrics.get(self.metric.name),
            **{
                name: value
                for name, value in metrics.items()
                if isinstance(value, float) or name.endswith("_interval") or name in (STARTS, STARTED)
            },
            **diagnostics,
            **self.ledger.row(),
            "seconds": round(self.seconds, 3),
            "phase_seconds": self._phases,
        }
        if self.ranking is not None and (bar := self.ranking.bar((*self.rows, row))) is not None:
            row[BAR] = bar
        self._phases = {}
        kept = self.public(row)
        self.rows.append(_without_tables(kept))
        self.folder.append_metrics(kept)
        self.trackers.log(kept)
        self.progress.round_done(row)
        if "faults" in self._hidden:  # then the file does not list them
            for fault in row.get("faults", ()):
                self.say(f"  {fault['kind']}: client {fault['client_id']} ({fault['reason']})")
        for line in alarm_lines(self._watch.see(kept)):
            self.say(line)

    def public(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a row or a summary that may be written."""
        return {name: value for name, value in values.items() if name not in self._hidden}

    def save(self, state: ServerState) -> None:
        """Write the checkpoint of a round whose row has been written."""
        self.folder.save_state(state, self.ranking)
        self._lap("checkpoint")

    def save_start(self, state: ServerState) -> None:
        """Write the checkpoint of the beginning, where that may turn out to be the best round."""
        if self.ranking is not None:
            self.save(state)

    def say(self, line: str) -> None:
        """Show a line on the terminal."""
        self.progress.say(with_names(line, self._names))

    def check_alive(self, quorum: int) -> None:
        """End a run whose rounds change nothing any more.

        Raises:
            RunError: the last `MOST_VOID` rounds had fewer updates than the quorum.
        """
        last = self.rows[-MOST_VOID:]
        if len(last) < MOST_VOID or not all("void" in row for row in last):
            return
        faults = [Fault(**fault) for row in last for fault in row.get("faults", ())]
        few, remedy = "no valid update", "remove the cause"
        if quorum > 1:
            few, remedy = (
                f"fewer than {count_of(quorum, 'valid update')} each",
                "remove the cause, or lower federation.quorum",
            )
        raise RunError(
            f"the last {MOST_VOID} rounds had {few} and changed nothing ({describe_faults(faults)}); "
            f"{remedy}, then continue with `fftmoe resume {quoted(self.folder.path)}`; if clients diverge, "
            "start a new run with a lower federation.learning_rate or head.learning_rate"
        )

    def totals(self) -> dict[str, Any]:
        """Return what `summary.json` keeps of the rounds."""
        last = self.rows[-1]
        loads = [row["expert_load_cv"] for row in self.rows if "expert_load_cv" in row]
        counts = self.ledger.faults
        return {
            **self.metric.facts,
            f"{self.metric.name}_by_round": {
                str(row["round"]): value for row in self.rows if (value := row[self.metric.name]) is not None
            },
            **{key: last[key] for key in ("bytes_up", "bytes_down", "client_seconds") if key in last},
            **({"expert_load_cv": loads[-1], "alarms": self._watch.alarms} if loads else {}),
            "per_client_round_by_tier": self.ledger.per_client_round(),
            "clients_failed": counts["failed"] + counts["late"] + counts["rejected"],
            "faults": {kind: count for kind, count in sorted(counts.items()) if count},
            "rounds_void": sum("void" in row for row in self.rows),
        }


def _without_tables(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, Mapping)}
