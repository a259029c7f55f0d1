"""The last checkpoints of a run: the server state after a round, and a manifest of the files that belong to it.

    checkpoints/round-000012.safetensors   the server state: global model, server optimiser, load, preferences, average
    checkpoints/round-000012.json          size and SHA-256 of that file, and of `metrics.jsonl` up to round 12

The rows of `metrics.jsonl` hold the ledger of bytes and seconds. No state of a random generator is saved: every random
stream is made again from the run's seed, its name and the round. The states of clients are saved separately
(`client_states.py`).
"""

import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fftmoe.records import ServerState
from fftmoe.store.files import (
    DamagedFileError,
    disk_errors,
    read_whole,
    remove,
    remove_temporaries,
    sha256,
    write_together,
)
from fftmoe.store.server_state import pack_state, unpack_state
from fftmoe.strict import read_small, strict_json

KEPT = 3  # checkpoints


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of the run in the folder `run`, by round.

    A checkpoint exists when its manifest exists, and it is intact when all its files agree with the manifest.
    """

    run: Path

    def save(self, state: ServerState) -> None:
        """Save this state with the rows so far; then remove all older checkpoints but the last two."""
        data, rows = pack_state(state), self.metrics.read_bytes() if self.metrics.exists() else b""
        manifest = {"round": state.round, "state": _size_and_digest(data), "metrics": _size_and_digest(rows)}
        text = json.dumps(manifest, indent=2) + "\n"
        write_together({self._state(state.round): data, self._manifest(state.round): text.encode()})
        with disk_errors(self._folder):
            self._keep(self.rounds()[:KEPT])

    def load(self, round: int) -> tuple[ServerState, bytes]:
        """The state after this round, and the bytes that `metrics.jsonl` had at that time.

        Raises:
            DamagedFileError: a file of the checkpoint is missing or damaged.
        """
        path = self._manifest(round)
        try:
            manifest = strict_json(read_small(path))
            if manifest["round"] != round:
                raise ValueError(f"it belongs to round {manifest['round']}")
            parts = [
                (manifest[name]["sha256"], operator.index(manifest[name]["bytes"])) for name in ("state", "metrics")
            ]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DamagedFileError(f"{path} is not a valid manifest: {error}") from error
        data, metrics = read_whole(self._state(round), *parts[0]), read_whole(self.metrics, *parts[1])
        try:
            return unpack_state(data), metrics
        except ValueError as error:
            raise DamagedFileError(f"{self._state(round)}: {error}") from error

    def rounds(self) -> list[int]:
        """The rounds of all checkpoints that exist, intact or not, newest first."""
        return sorted((_round(path) for path in self._folder.glob("round-*.json")), reverse=True)

    def forget_after(self, round: int) -> None:
        """Remove the checkpoints of later rounds, and files that were not completely written or removed."""
        self._keep([kept for kept in self.rounds() if kept <= round][:KEPT])
        remove_temporaries(self._folder)

    @property
    def metrics(self) -> Path:
        """The file with one row for each round."""
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


def _size_and_digest(data: bytes) -> Mapping[str, Any]:
    return {"bytes": len(data), "sha256": sha256(data)}


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
