"""Keeps standard streams from ending the work, whatever becomes of their other end.

A run of hours must not be lost because a pager was closed, or because the disk of its log is full.
"""

import errno
import os
import sys
from collections.abc import Callable
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any


class _Enduring(FileIO):
    """Is a file descriptor that takes everything; what the system refuses is lost, and the first error is kept."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """See `FileIO.write`."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


def endure() -> Callable[[], str | None]:
    r"""Let standard output and standard error take everything from now on, and let a closed stream be an empty file.

    What the encoding of a stream lacks is written as an escape, `\u77f3`.

    Returns:
        says in the end why standard output is not complete; None if it is, or if its reader wanted no more (`head`).
    """
    _open_closed_streams()
    output = _replaced("stdout")
    _replaced("stderr")

    def reason() -> str | None:
        sys.stdout.flush()
        if output is None or output.failure is None or output.failure.errno == errno.EPIPE:
            return None
        return f"standard output is not complete: {output.failure.strerror}; send it to a disk that has space"

    return reason


def _open_closed_streams() -> None:
    """Put the empty device in the place of each closed stream, so that no file that is opened later gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # 0, 1, 2: the lowest free one is taken
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def _replaced(name: str) -> _Enduring | None:
    """Replace a stream of this process by one that endures; None for any other, such as that of a test."""
    stream = getattr(sys, name)
    if not isinstance(stream, TextIOWrapper):
        return None
    stream.reconfigure(errors="backslashreplace")
    if stream is not getattr(sys, f"__{name}__"):
        return None
    stream.flush()
    file = _Enduring(stream.fileno(), "wb", closefd=False)
    made = TextIOWrapper(
        BufferedWriter(file),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    setattr(sys, name, made)
    return file
