"""The last checkpoints of a run: the server's state after a round, and a manifest of all that belongs to it.

    checkpoints/round-000012.safetensors   the state: global model, server optimiser, load, preferences, average
    checkpoints/round-000012.json          size and SHA-256 of that file, and of `metrics.jsonl` as far as round 12

The rows of `metrics.jsonl` hold the ledger. No random generator is kept, and nothing of how cohorts are drawn: every
stream is made anew from the run's seed, its name and the round. What clients keep is beside it (`client_states.py`).
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftmoe.records import ServerState
from fftmoe.store.files import Damaged, disk_errors, read_whole, remove, remove_temporaries, sha256, write_together
from fftmoe.store.server_state import pack_state, unpack_state
from fftmoe.strict import read_small, strict_json

KEPT = 3  # checkpoints


@dataclass(frozen=True)
class Checkpoints:
    """Those of the run in `run`, by round. One is there when its manifest is, and whole when that says so."""

    run: Path

    def save(self, state: ServerState) -> None:
        """Keep this state with the rows so far; of older ones the last two stay, once this one is on the disk."""
        data, rows = pack_state(state), self.metrics.read_bytes() if self.metrics.exists() else b""
        manifest = {"round": state.round, "state": _facts(data), "metrics": _facts(rows)}
        text = json.dumps(manifest, indent=2) + "\n"
        write_together({self._state(state.round): data, self._manifest(state.round): text.encode()})
        with disk_errors(self._folder):
            self._keep(self.rounds()[:KEPT])

    def load(self, round: int) -> tuple[ServerState, bytes]:
        """The state after this round, and the bytes that `metrics.jsonl` had then.

        Raises:
            Damaged: the checkpoint is not whole.
        """
        path = self._manifest(round)
        try:
            manifest = strict_json(read_small(path))
            if manifest["round"] != round:
                raise ValueError(f"it is of round {manifest['round']}")
            parts = [
                (manifest[name]["sha256"], operator.index(manifest[name]["bytes"])) for name in ("state", "metrics")
            ]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise Damaged(f"{path} is no manifest of it: {error}") from error
        data, metrics = read_whole(self._state(round), *parts[0]), read_whole(self.metrics, *parts[1])
        try:
            return unpack_state(data), metrics
        except ValueError as error:
            raise Damaged(f"{self._state(round)}: {error}") from error

    def rounds(self) -> list[int]:
        """The rounds of all that are there, whole or not; newest first."""
        return sorted((_round(path) for path in self._folder.glob("round-*.json")), reverse=True)

    def forget_after(self, round: int) -> None:
        """Remove those of later rounds, and what was not finished writing or removing."""
        self._keep([kept for kept in self.rounds() if kept <= round][:KEPT])
        remove_temporaries(self._folder)

    @property
    def metrics(self) -> Path:
        """A row for each round."""
        return self.run / "metrics.jsonl"

    @property
    def _folder(self) -> Path:
        return self.run / "checkpoints"

    def _state(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.safetensors"

    def _manifest(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.json"

    def _keep(self, rounds: list[int]) -> None:
        remove(*(path for path in self._folder.glob("round-*") if _round(path) not in rounds))


def _facts(data: bytes) -> Mapping[str, Any]:
    return {"bytes": len(data), "sha256": sha256(data)}


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
