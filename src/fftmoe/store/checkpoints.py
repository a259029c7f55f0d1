"""Keeps the last checkpoints of a run, and its best one: the server state after a round, and a manifest of its files.

    checkpoints/round-000012.safetensors   the server state: global model, server optimiser, load, preferences, average
    checkpoints/round-000012.json          size and SHA-256 of that file, and the row of round 12 with its own SHA-256

Where a run keeps its best round (`ranking.py`), the best of the checkpoints that are older than the last three stays as
well. So a run that goes on from any of them, also because newer ones are damaged, still has the best round before it.

The row of a round holds the ledger of bytes and seconds, so damage to `metrics.jsonl` costs no checkpoint. No state of
a random generator is saved: every random stream is made again from the run's seed, its name and the round. The states
of clients are saved separately (`client_states.py`).
"""

import operator
from collections.abc import Mapping, Sequence
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
from fftmoe.store.ranking import Ranking
from fftmoe.store.rows import RowFile, parse_row
from fftmoe.store.server_state import pack_state, unpack_state
from fftmoe.strict import exact_json, read_small, strict_json

KEPT_CHECKPOINTS = 3  # checkpoints, without the best of the older ones
MOST_MANIFEST = 2**26  # bytes: a row names the faults of its round


@dataclass(frozen=True)
class Checkpoints:
    """Keeps the checkpoints of the run in the folder `run`, by round.

    A checkpoint exists when its manifest exists, and it is intact when state and row agree with the manifest.
    """

    run: Path

    def save(self, state: ServerState, ranking: Ranking | None = None) -> None:
        """Save this state with the row of its round; then remove all older checkpoints but the last two.

        Args:
            ranking: the best of the others stays too; None where no round is kept for being the best.
        """
        data, line = pack_state(state), self.rows.last()
        row = parse_row(line)
        own = line.decode() if row is not None and row.values["round"] == state.round else None
        manifest = {
            "round": state.round,
            "state": {"bytes": len(data), "sha256": sha256(data)},
            "row": None if own is None else {"text": own, "sha256": sha256(line)},
        }
        text = exact_json(manifest, indent=2) + "\n"
        write_together({self._state(state.round): data, self._manifest(state.round): text.encode()})
        with disk_errors(self._folder):
            self._keep_last_and_best(self.rounds(), ranking)

    def load(self, round: int) -> tuple[ServerState, bytes]:
        """Return the state after this round, and the line of this round in `metrics.jsonl`; empty if the run wrote
        none.

        Raises:
            DamagedFileError: a file of the checkpoint is missing or damaged.
        """
        path = self._manifest(round)
        try:
            manifest = strict_json(read_small(path, MOST_MANIFEST))
            if manifest["round"] != round:
                raise ValueError(f"it belongs to round {manifest['round']}")
            digest, size = manifest["state"]["sha256"], operator.index(manifest["state"]["bytes"])
            line = _line_of(manifest) if "metrics" not in manifest else self._line_in_rows(round)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DamagedFileError(f"{path} is not a valid manifest: {error}") from error
        try:
            return unpack_state(read_whole(self._state(round), digest, size)), line
        except ValueError as error:
            raise DamagedFileError(f"{self._state(round)}: {error}") from error

    def ranked(self, ranking: Ranking, rounds: Sequence[int] | None = None) -> list[int]:
        """Return the rounds of these checkpoints, or of all, whose manifest has the metric, best first."""
        lines = [self.line(round) for round in (self.rounds() if rounds is None else rounds)]
        return ranking.ranked(row.values for line in lines if (row := parse_row(line)) is not None)

    def line(self, round: int) -> bytes:
        """Return the line of this round in `metrics.jsonl`, from its manifest; empty if that has none or is damaged."""
        try:
            return _line_of(strict_json(read_small(self._manifest(round), MOST_MANIFEST)))
        except (OSError, ValueError, LookupError, TypeError):
            return b""

    def rounds(self) -> list[int]:
        """Return the rounds of all checkpoints that exist, intact or not, newest first."""
        return sorted((_round(path) for path in self._folder.glob("round-*.json")), reverse=True)

    def forget_after(self, round: int, ranking: Ranking | None = None) -> None:
        """Remove the checkpoints of later rounds, and files that were not completely written or removed.

        Args:
            ranking: see `save`.
        """
        self._keep_last_and_best([kept for kept in self.rounds() if kept <= round], ranking)
        remove_temporaries(self._folder)

    @property
    def rows(self) -> RowFile:
        """Return one row for each round."""
        return RowFile(self.run)

    def _line_in_rows(self, round: int) -> bytes:
        """Return the line of a round in `metrics.jsonl`, for a manifest of an older version, which has no row."""
        found = [row.line for row in self.rows.read() if row.values["round"] == round]
        if not found:
            raise ValueError(f"the row of round {round} in {self.rows.path} is missing or damaged")
        return found[0]

    @property
    def _folder(self) -> Path:
        return self.run / "checkpoints"

    def _state(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.safetensors"

    def _manifest(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.json"

    def _keep_last_and_best(self, rounds: Sequence[int], ranking: Ranking | None) -> None:
        """Keep the last of these rounds, newest first, and the best of the others."""
        best = [] if ranking is None else self.ranked(ranking, rounds[KEPT_CHECKPOINTS:])[:1]
        self._keep([*rounds[:KEPT_CHECKPOINTS], *best])

    def _keep(self, rounds: list[int]) -> None:
        remove(*(path for path in self._folder.glob("round-*") if _round(path) not in rounds))


def _line_of(manifest: Mapping[str, Any]) -> bytes:
    if manifest["row"] is None:
        return b""
    line = manifest["row"]["text"].encode()
    if sha256(line) != manifest["row"]["sha256"] or parse_row(line) is None:
        raise ValueError("its row has changed since it was written")
    return line


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))
