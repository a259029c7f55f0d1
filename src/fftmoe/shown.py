"""Shows texts that come from data, recipes and other people's machines without letting them act on what shows them.

Messages of our own are shown without control characters where they are written. Log lines, warnings and tracebacks come
from libraries too, and quote labels, cells and file names as they are. So standard error shows what it is given, in the
process of a command (`shown_errors`) and in every process that is started for its work (`show_errors_from_now_on`).
"""

import io
import logging
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import TracebackType
from typing import TextIO

# Control characters move a terminal's cursor or change its state, the marks of direction reorder what stands beside
# them, and half of a pair of surrogates, as in a file name that is not UTF-8, cannot be written at all.
_REORDERING_OR_BROKEN = "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ACTING = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_REORDERING_OR_BROKEN}]")
_IN_JSON = re.compile(f"[\x7f-\x9f{_REORDERING_OR_BROKEN}]")  # JSON itself escapes those below a blank


def shown(text: str) -> str:
    r"""Return the text with characters that could act on a terminal or a page written as in Python: `\x1b`, `\u202e`.

    Line feeds and tabs stay.
    """
    return _ACTING.sub(lambda found: ascii(found[0])[1:-1], text)


def shown_on_a_line(text: str) -> str:
    """Return the same on a single line."""
    return shown(text).replace("\n", "\\n")


def shown_json(text: str) -> str:
    """Return the same JSON: for JSON's readers the same value, for a terminal and for readers of lines harmless."""
    return _IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural ends in "s" or "ies": "1 fault", "1,204 faults", "2 entries"."""
    plural = f"{noun[:-1]}ies" if re.search("[^aeo]y$", noun) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def quoted(path: Path | str) -> str:
    """Return the path as a word of a command: pasted into a shell, it names the same path, and is no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


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
    """Let standard error show control characters within the context,
    and so the traceback of an error that leaves it.
    """
    with redirect_stderr(ShownStream(sys.stderr)):
        try:
            yield
        finally:
            sys.excepthook = _show_traceback  # typer has set its own meanwhile


def show_errors_from_now_on() -> None:
    """Let standard error of this process show control characters until its end, for a process of our own.

    Log handlers that libraries have made before write to the same stream.
    """
    former = sys.stderr
    if former is None or isinstance(former, ShownStream):  # no stream at all: nothing is shown
        return
    sys.stderr = ShownStream(former)
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and handler.stream is former:
            handler.setStream(sys.stderr)
    sys.excepthook = _show_traceback


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))
