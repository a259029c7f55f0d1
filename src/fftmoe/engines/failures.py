"""Defines what a node says about a failure: a code from a fixed list. The words stay in the node's own log.

A message for people names the value, the column and the file that it is about. At a site these belong to the site, and
whoever asks could otherwise read them, one request after another: a label that is not in the list, a cell that is no
number, a path. A code says which part of the work failed, and no more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from fftmoe.errors import FftmoeError, OutputError


class Failure(StrEnum):
    """Names the parts of a node's work that can fail."""

    REQUEST = "request"
    RECIPE = "recipe"
    DATA = "data"
    BACKBONE = "backbone"
    BUDGET = "budget"
    POLICY = "policy"
    REFUSED = "refused"
    TRAINING = "training"
    CHANGED = "changed"
    DISK = "disk"
    INTERNAL = "internal"


MEANINGS = {
    Failure.REQUEST: "it could not read the request",
    Failure.RECIPE: "the recipe or the labels of this run are not valid there",
    Failure.DATA: "its data does not fit the recipe",
    Failure.BACKBONE: "it has no backbone that fits the recipe",
    Failure.BUDGET: "its budget does not fit the recipe",
    Failure.POLICY: "its own policy or its ledger does not allow what it was asked",
    Failure.REFUSED: "it refuses what it was asked",
    Failure.TRAINING: "its training or evaluation failed",
    Failure.CHANGED: "its data or its backbone have changed since it joined this run",
    Failure.DISK: "it cannot write to its disk",
    Failure.INTERNAL: "it failed unexpectedly",
}
SEE_LOG = "the reason is in its own log"

# What Flower, or our link to it, says about an answer that did not come; Flower's own texts name its internal parts.
LOST = {
    3: "its node was restarted, or its message expired",  # flwr.common.constant.ErrorCode.MESSAGE_UNAVAILABLE
    4: "its answer expired",  # REPLY_MESSAGE_UNAVAILABLE
    5: "its node has disconnected",  # NODE_UNAVAILABLE
}
CUT_OFF = "its answer arrived incomplete"
UNREADABLE = "its answer cannot be read"
APP_FAILED = f"its app failed; {SEE_LOG}"


class CodedError(FftmoeError):
    """Reports a failure with its code; its cause has the words."""

    def __init__(self, code: Failure) -> None:
        super().__init__(f"{MEANINGS[code]}; {SEE_LOG}")
        self.code = code


@contextmanager
def failing_as(code: Failure) -> Iterator[None]:
    """Give every error of the block this code, unless it has one.

    Libraries that are written in Rust raise a panic, which is no `Exception`. Only what is meant to end the process
    passes.

    Raises:
        CodedError: the block raised an error, which is its cause.
    """
    try:
        yield
    except (CodedError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except OutputError as error:
        raise CodedError(Failure.DISK) from error
    except BaseException as error:
        raise CodedError(code) from error


def words_for(code: str) -> str:
    """Return the words for a code that arrived from another organisation; unknown codes are not repeated."""
    if code not in MEANINGS:
        return f"it gave a reason that is not on the list; {SEE_LOG}"
    return f"{MEANINGS[Failure(code)]} (code {code}); {SEE_LOG}"


def described_error(code: int, reason: str) -> str:
    """Return the words for an error of Flower, whose reason may be another organisation's: only those that we know."""
    return reason if reason in (CUT_OFF, UNREADABLE, *LOST.values()) else LOST.get(code, APP_FAILED)
