"""One row per round: to `metrics.jsonl`, the trackers and the terminal."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.records import ServerState
from fftmoe.report.load import LoadWatch, describe_alarm
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import Trackers
from fftmoe.rounds.exchange import Ledger
from fftmoe.store import RunFolder


class Journal:
    """Writes the rows of a run, and goes on with the `rows` of one that was interrupted.

    Of what it has written it keeps what is asked for again, without the tables by client, block and tier: those of
    thousands of rounds are in the file.
    """

    def __init__(
        self,
        folder: RunFolder,
        trackers: Trackers,
        progress: Progress,
        metric: str,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.folder, self.trackers, self.progress, self.metric = folder, trackers, progress, metric
        self.rows = [_brief(row) for row in rows]
        self.ledger = Ledger.resumed(rows[-1]) if rows else Ledger()
        self._watch = LoadWatch(rows)
        self._phases: dict[str, float] = {}
        self._lapped = time.perf_counter()
        self._started = self._lapped - (rows[-1]["seconds"] if rows else 0.0)

    @property
    def seconds(self) -> float:
        """Of the run so far, whatever it was interrupted."""
        return time.perf_counter() - self._started

    def lap(self, phase: str) -> None:
        """The time since the last lap went to this phase of the round whose row comes next."""
        now = time.perf_counter()
        self._phases[phase] = round(self._phases.get(phase, 0.0) + now - self._lapped, 3)
        self._lapped = now

    def write(self, state: ServerState, diagnostics: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """One round; bytes and seconds are totals since the start, the metric is None where not measured."""
        row = {
            "round": state.round,
            "metric": self.metric,
            self.metric: metrics.get(self.metric),
            **{name: value for name, value in metrics.items() if isinstance(value, float)},
            **diagnostics,
            **self.ledger.row(),
            "seconds": round(self.seconds, 3),
            "phase_seconds": self._phases,
        }
        self._phases = {}
        self.rows.append(_brief(row))
        self.folder.append_metrics(row)
        self.trackers.log(row)
        self.progress.round_done(row)
        for alarm in self._watch.see(row):
            self.progress.say(f"alarm: {describe_alarm(alarm)}")

    def totals(self) -> dict[str, Any]:
        """What `summary.json` keeps of the rounds."""
        last = self.rows[-1]
        loads = [row["expert_load_cv"] for row in self.rows if "expert_load_cv" in row]
        counts = self.ledger.faults
        return {
            "metric": self.metric,
            f"{self.metric}_by_round": {
                str(row["round"]): row[self.metric] for row in self.rows if row[self.metric] is not None
            },
            **{key: last[key] for key in ("bytes_up", "bytes_down", "client_seconds")},
            **({"expert_load_cv": loads[-1], "alarms": self._watch.alarms} if loads else {}),
            "per_client_round_by_tier": self.ledger.per_client_round(),
            "clients_failed": counts["failed"] + counts["late"] + counts["rejected"],
            "faults": {kind: count for kind, count in sorted(counts.items()) if count},
            "rounds_void": sum("void" in row for row in self.rows),
        }


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, Mapping)}
