"""Errors whose message a person can act on: what went wrong, with which value, whose, and what to change."""

import difflib
from collections.abc import Iterable


class FftmoeError(Exception):
    """Base of every error raised on purpose; the command line prints its message without a traceback."""

    exit_status = 1


class InputError(FftmoeError, ValueError):
    """The user's input cannot be used. The run has written nothing."""

    exit_status = 2


class OutputError(FftmoeError):
    """The output cannot take the run's files (a full disk). Files are whole or absent; the remedy is the user's."""

    exit_status = 2


class RunError(FftmoeError, RuntimeError):
    """The input was good but the run could not finish (a client failed, a worker died)."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest valid name, or the list of valid names when none is near."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(names)}"
