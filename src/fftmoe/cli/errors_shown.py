"""The standard error of the command line, on which nothing that quotes data can act on a terminal.

Messages of our own are shown without control characters where they are written. Log lines, warnings and tracebacks come
from libraries too, and quote labels, cells and file names as they are.
"""

import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from types import TracebackType
from typing import TextIO

from fftmoe.shown import shown


class ShownStream(io.TextIOBase):
    """Writes texts to another stream with control characters written out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Write the text as `shown` gives it; returns the length of the original, as callers expect."""
        self._stream.write(shown(text))
        return len(text)

    def flush(self) -> None:
        """See io."""
        self._stream.flush()

    def isatty(self) -> bool:
        """See io."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """See io."""
        return self._stream.fileno()


@contextmanager
def shown_errors() -> Iterator[None]:
    """Within the context standard error shows control characters; so does the traceback of an error that leaves it."""
    with redirect_stderr(ShownStream(sys.stderr)):
        try:
            yield
        finally:
            sys.excepthook = _show_traceback  # typer has set its own meanwhile


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))
