"""Defines errors with a message for people: what went wrong, with which value, whose value it is,
and what to change.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fftmoe.shown import shown_on_a_line

LONGEST = 4000  # characters of a message


def _bounded(text: str) -> str:
    """Return the text without its middle, if it is too long for a message."""
    half = LONGEST // 2 - 5
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"


def _on_one_line(text: str) -> str:
    """Return the text on one line, with its control characters shown: a line end or a tab in a name is one of them."""
    return shown_on_a_line(text).replace("\t", "\\t")


class FftmoeError(Exception):
    """Is the base class of every error that this package raises; the command line prints it without a traceback."""

    exit_status = 1

    def __init__(self, *arguments: object) -> None:
        """Make an error; a text from a file, a library or another machine in its message cannot act on a terminal."""
        super().__init__(*(_bounded(_on_one_line(value)) if isinstance(value, str) else value for value in arguments))


class InputError(FftmoeError, ValueError):
    """Reports that the user's input cannot be used. The run has written nothing."""

    exit_status = 2


class OutputError(FftmoeError):
    """Reports that a file of the run cannot be written, e.g. because the disk is full.
    Every file is complete or absent.
    """

    exit_status = 2


class RunError(FftmoeError, RuntimeError):
    """Reports that the input is valid, but the run could not finish, e.g. because a client failed or a worker died."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Suggest the nearest valid name, `"; did you mean 'x'?"`, or list all valid names if none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(names)}"


@contextmanager
def looked_up(what: str) -> Iterator[None]:
    """Tell in one sentence that a file or a folder cannot be looked up, such as one that this user may not search.

    Raises:
        InputError: the system reported an error in the block; a path begins with the home of an unknown user, or is
            none.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # ValueError: no name of a file holds the character NUL
        if isinstance(error, FftmoeError):
            raise
        remedy = "name it without ~" if isinstance(error, RuntimeError) else "let this user read it, or name another"
        raise InputError(f"{what} cannot be looked up ({error!s:.200}); {remedy}") from error
