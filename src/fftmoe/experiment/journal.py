"""One row per round: to `metrics.jsonl`, the trackers and the terminal."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fftmoe.experiment.ledger import Ledger
from fftmoe.records import ServerState
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import Trackers
from fftmoe.store import RunFolder


class Journal:
    """Writes the rows of a run, and goes on with the `rows` of one that was interrupted."""

    def __init__(
        self, folder: RunFolder, trackers: Trackers, progress: Progress, rows: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.folder, self.trackers, self.progress = folder, trackers, progress
        self.rows = list(rows)
        self.ledger = Ledger.resumed(rows[-1]) if rows else Ledger()
        self._started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    @property
    def seconds(self) -> float:
        """Of the run so far, whatever it was interrupted."""
        return time.perf_counter() - self._started

    def write(self, state: ServerState, diagnostics: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """One round; bytes and seconds are totals since the start, accuracy is None where not measured."""
        row = {
            "round": state.round,
            "accuracy": metrics.get("accuracy"),
            **diagnostics,
            **self.ledger.row(),
            "seconds": round(self.seconds, 3),
        }
        self.rows.append(row)
        self.folder.append_metrics(row)
        self.trackers.log(row)
        self.progress.round_done(row)

    def totals(self) -> dict[str, Any]:
        """What `summary.json` keeps of the rounds."""
        last = self.rows[-1]
        loads = [row["expert_load_cv"] for row in self.rows if "expert_load_cv" in row]
        counts = self.ledger.faults
        return {
            "accuracy_by_round": {str(r["round"]): r["accuracy"] for r in self.rows if r["accuracy"] is not None},
            **{key: last[key] for key in ("bytes_up", "bytes_down", "client_seconds")},
            **({"expert_load_cv": loads[-1]} if loads else {}),
            "per_client_round_by_tier": self.ledger.per_client_round(),
            "clients_failed": counts["failed"] + counts["late"] + counts["rejected"],
            "faults": {kind: count for kind, count in sorted(counts.items()) if count},
            "rounds_void": sum("void" in row for row in self.rows),
        }
