"""Stores the rows of a run, one line of JSON for each round, each with a digest of its own: damage costs a line, not
the run.

metrics.jsonl           the rows
checkpoints/rows.txt    the SHA-256 of each line, in the same order
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fftmoe.store.files import PRIVATE_FILE, disk_errors, sha256, write_atomically
from fftmoe.strict import json_text

HEX_DIGEST = re.compile(rb"[0-9a-f]{64}")
BYTES_AT_ONCE = 2**16  # bytes that are read at once from the end of the file


class MetricsRow(NamedTuple):
    """Holds a line of `metrics.jsonl` with its line break, and its values."""

    line: bytes
    values: dict[str, Any]


@dataclass(frozen=True)
class RowFile:
    """Keeps the rows of the run in the folder `run`."""

    run: Path

    @property
    def path(self) -> Path:
        """Return the file with the rows."""
        return self.run / "metrics.jsonl"

    @property
    def digests(self) -> Path:
        """Return the file with the digests of the lines."""
        return self.run / "checkpoints" / "rows.txt"

    def append(self, values: dict[str, Any]) -> None:
        """Append a row, and then its digest."""
        line = json_text(values).encode() + b"\n"
        with disk_errors(self.path):
            _append(self.path, line)
            _append(self.digests, _digest_line(line))

    def read(self) -> list[MetricsRow]:
        """Return the rows that are intact, in the order of the file, one for each round.

        A line that is damaged, incomplete, or none of those that were written is left out. Where there is no digest for
        a line, because an older version wrote the rows or the digests are damaged, its JSON must be valid.

        Raises:
            OutputError: the file exists and cannot be read.
        """
        if not self.path.exists():
            return []
        with disk_errors(self.path):
            lines = self.path.read_bytes().splitlines(keepends=True)
            known = self.digests.read_bytes().splitlines() if self.digests.exists() else []
        written = {digest for digest in known if HEX_DIGEST.fullmatch(digest)}
        rows = dict[int, MetricsRow]()
        unsure = dict[int, MetricsRow]()
        for place, line in enumerate(lines):
            if (row := parse_row(line)) is None:
                continue
            if _digest_line(line).strip() in written:
                rows[row.values["round"]] = row
            elif place >= len(known) or known[place] not in written:
                unsure.setdefault(row.values["round"], row)
        return [row for _, row in sorted({**unsure, **rows}.items())]

    def last(self) -> bytes:
        """Return the last line of the file, complete or not; empty if there is none.
        The rest of the file is not read.
        """
        if not self.path.exists():
            return b""
        with disk_errors(self.path), self.path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            tail = b""
            while end and b"\n" not in tail[:-1]:
                start = max(0, end - BYTES_AT_ONCE)
                file.seek(start)
                tail, end = file.read(end - start) + tail, start
        return tail[tail.rfind(b"\n", 0, -1) + 1 :]

    def replace(self, lines: Sequence[bytes]) -> None:
        """Write the file again with these lines."""
        write_atomically(self.path, b"".join(lines))
        write_atomically(self.digests, b"".join(map(_digest_line, lines)))

    def files(self) -> list[Path]:
        """Return the files that exist, to be forced to the disk."""
        return [path for path in (self.path, self.digests) if path.exists()]


def parse_row(line: bytes) -> MetricsRow | None:
    """Return a complete line as a row; None if it is damaged, or still being written."""
    if not line.endswith(b"\n"):
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("round")) is not int or values["round"] < 0:
        return None
    return MetricsRow(line, values)


def _digest_line(line: bytes) -> bytes:
    return sha256(line).encode() + b"\n"


def _append(path: Path, data: bytes) -> None:
    if not path.exists():
        path.touch(PRIVATE_FILE)
    with path.open("ab") as file:
        file.write(data)
