"""Keeps an append-only file of JSON lines in which every change, and every loss of a line, is noticed.

Each line holds its number and the SHA-256 of the line before it. A second file, the head, says how many lines there
are at least, how many bytes they have and the SHA-256 of the last of them. Lines are on the disk before the head is
written, so that a kill or a loss of power in between leaves a file that is longer than its head says, and never a
shorter one. The head itself is not forced to the disk: an older head is still true of the lines.
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError
from fftmoe.shown import count_of
from fftmoe.store.files import disk_errors, rewrite, sha256, sync
from fftmoe.strict import exact_json, open_file, strict_json

NO_LINE = "0" * 64  # what the first line names as the line before it
HEAD_BYTES = 128  # the head is rewritten in place, which is one sector of a disk
MOST_LOG_BYTES = 2**28


@dataclass
class ChainedLog:
    """Keeps the log in `path`, with its head and its lock next to it. Several processes may append to it.

    Attributes:
        path: of the lines. label: what the file is, for messages.
    """

    path: Path
    label: str
    _entries: list[dict[str, Any]] = field(default_factory=list)
    _known: tuple[Any, ...] = ()
    _end: "_Head | None" = None

    @property
    def head(self) -> Path:
        """Return the file that says how long the log is at least."""
        return self.path.with_suffix(".head")

    def begin(self) -> None:
        """Make a new log without lines.

        Raises:
            InputError: there is one, or a part of one. OutputError: it cannot be written; nothing is left of it.
        """
        for path in (self.path, self.head):
            if os.path.lexists(path):
                raise InputError(f"{path} exists, so {self.label} is not begun again; keep it")
        with disk_errors(self.path):
            made = list[Path]()
            try:
                for path, data in ((self.path, b""), (self.head, EMPTY.packed())):
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    made.append(path)
                    with os.fdopen(descriptor, "wb") as file:
                        file.write(data)
                    sync(path)
                sync(self.path.parent)
            except OSError:
                for path in made:  # half a log would pass for a damaged one, which nobody may begin again
                    path.unlink()
                raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from appending while the block runs."""
        with disk_errors(self.path):
            handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def read(self) -> list[dict[str, Any]]:
        """Return all entries; they are read from the file again unless it is as this object has left it.

        Raises:
            InputError: a file is missing, or the lines are not those that were written.
        """
        if self._end is None or self._state() != self._known:
            self._entries, self._end = self._load()
            self._known = self._state()
        return self._entries

    def holds(self, head: bytes) -> bool:
        """Return whether the log has all lines that this copy of its head counted.

        Raises:
            InputError: as `read`. ValueError: the bytes are no head.
        """
        entries, said = self.read(), _Head.unpacked(head)
        assert self._end is not None
        if not 0 < said.lines < len(entries):
            return said.lines == 0 or (said.lines, said.digest) == (self._end.lines, self._end.digest)
        return entries[said.lines]["previous"] == said.digest

    def append(self, values: Mapping[str, Any], durable: bool) -> None:
        """Add an entry, within `locked`.

        Args:
            durable: force this entry and all before it to the disk before this returns. Otherwise the entry survives
                the end of the process, and not a loss of power.

        Raises:
            InputError: as `read`. OutputError: it cannot be written; the log is as before. ValueError: a number of the
                entry is not finite, so `read` would refuse it; the log is as before.
        """
        self.read()
        assert self._end is not None
        end = self._end
        entry = {"number": end.lines + 1, **values, "previous": end.digest}
        line = exact_json(entry, compact=True).encode() + b"\n"  # `read` takes no Infinity
        longer = _Head(end.lines + 1, end.size + len(line), sha256(line))
        with disk_errors(self.path):
            handle = os.open(self.path, os.O_WRONLY)
            try:
                self._write(handle, line, end.size, durable)
            finally:
                os.close(handle)
            self._end = longer
            if durable:
                rewrite(self.head, longer.packed())
        self._entries.append(entry)
        self._known = self._state()

    def _write(self, handle: int, line: bytes, place: int, durable: bool) -> None:
        """Write a line at the end of the whole lines, over what a killed process may have left of another."""
        try:
            os.ftruncate(handle, place)
            written = os.pwrite(handle, line, place)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # a full disk writes a part and reports no error
            if durable:
                os.fsync(handle)
        except OSError:
            os.ftruncate(handle, place)
            raise

    def _state(self) -> tuple[Any, ...]:
        """Return what changes if another hand writes to one of the files."""
        try:
            found = [os.stat(path) for path in (self.path, self.head)]
        except OSError as error:
            raise self._damaged(f"{error.filename} cannot be read: {error.strerror}") from error
        return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)

    def _load(self) -> tuple[list[dict[str, Any]], "_Head"]:
        try:
            with open_file(self.head) as file:
                head = _Head.unpacked(file.read(HEAD_BYTES + 1))
            with open_file(self.path) as file:
                data = file.read(MOST_LOG_BYTES + 1)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if len(data) > MOST_LOG_BYTES:
            raise self._damaged(f"{self.path} has more than {MOST_LOG_BYTES} bytes")
        return self._lines(data, head)

    def _lines(self, data: bytes, head: "_Head") -> tuple[list[dict[str, Any]], "_Head"]:
        """Return the entries, and where they end. What follows the last line feed beyond the head was
        never completed.
        """
        entries: list[dict[str, Any]] = []
        end = EMPTY
        is_met = head == end
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                entry = strict_json(line)
            except ValueError as error:
                raise self._damaged(f"line {end.lines + 1} of {self.path} cannot be read: {error}") from error
            if (entry.get("number"), entry.get("previous")) != (end.lines + 1, end.digest):
                raise self._damaged(f"line {end.lines + 1} of {self.path} does not follow the line before it")
            entries.append(entry)
            end = _Head(end.lines + 1, end.size + len(line), sha256(line))
            is_met = is_met or head == end
        if not is_met:
            raise self._damaged(
                f"{self.path} has {count_of(end.lines, 'whole line')}, and not all {head.lines:,} that were written"
            )
        return entries, end

    def _damaged(self, why: str) -> InputError:
        return InputError(f"{self.label} is damaged: {why}; restore {self.path} and {self.head} as they were")


@dataclass(frozen=True)
class _Head:
    """Holds the number of a log's lines, their bytes, and the SHA-256 of the last line."""

    lines: int
    size: int
    digest: str

    def packed(self) -> bytes:
        text = exact_json({"lines": self.lines, "bytes": self.size, "last": self.digest})
        return text.ljust(HEAD_BYTES - 1).encode() + b"\n"

    @classmethod
    def unpacked(cls, data: bytes) -> "_Head":
        """Return the head in these bytes.

        Raises:
            ValueError: they are none.
        """
        values = strict_json(data)
        if {name: type(value) for name, value in values.items()} != {"lines": int, "bytes": int, "last": str}:
            raise ValueError(f"its head is {values!r:.100}")
        return cls(values["lines"], values["bytes"], values["last"])


EMPTY = _Head(0, 0, NO_LINE)
