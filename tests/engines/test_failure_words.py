"""What leaves a node about a failure: a code, whatever was raised, and only words from a list."""

import pytest

from fftmoe.engines.failures import (
    APP_FAILED,
    CUT_OFF,
    LOST,
    MEANINGS,
    UNREADABLE,
    CodedError,
    Failure,
    described_error,
    failing_as,
    words_for,
)
from fftmoe.errors import InputError, OutputError

SECRET = "row 7 of patients.csv"


class Panic(BaseException):
    """What a library in Rust raises is no `Exception`."""


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (InputError(SECRET), Failure.DATA),
        (KeyError(SECRET), Failure.DATA),
        (Panic(SECRET), Failure.DATA),
        (OutputError(SECRET), Failure.DISK),
        (CodedError(Failure.BUDGET), Failure.BUDGET),
    ],
)
def test_an_error_has_a_code_and_its_words_are_only_its_cause(raised: BaseException, code: Failure):
    with pytest.raises(CodedError) as failed, failing_as(Failure.DATA):
        raise raised
    assert failed.value.code is code
    assert str(failed.value) == f"{MEANINGS[code]}; the reason is in its own log"
    assert failed.value is raised or failed.value.__cause__ is raised


@pytest.mark.parametrize("ends", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_meant_to_end_the_process_passes(ends: type[BaseException]):
    with pytest.raises(ends), failing_as(Failure.DATA):
        raise ends


def test_a_code_that_is_not_on_the_list_is_not_repeated():
    assert set(MEANINGS) == set(Failure)
    for code in Failure:
        assert words_for(code.value) == f"{MEANINGS[code]} (code {code}); the reason is in its own log"
    assert words_for(SECRET) == "it gave a reason that is not on the list; the reason is in its own log"


def test_a_reason_that_is_not_ours_is_not_repeated():
    for reason in (CUT_OFF, UNREADABLE, *LOST.values()):
        assert described_error(0, reason) == reason
        assert described_error(3, reason) == reason
    for code, words in LOST.items():
        assert described_error(code, SECRET) == words
    assert described_error(0, SECRET) == APP_FAILED
