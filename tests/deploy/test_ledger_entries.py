"""What begins a site's ledger, and which entries it takes."""

from pathlib import Path

import pytest

from fftmoe.deploy import ledger as ledgers
from fftmoe.deploy.ledger import STATE, ledger_in
from fftmoe.errors import InputError
from fftmoe.setup.site_request import PROFILE


def test_a_ledger_is_made_once(tmp_path: Path):
    ledger = ledger_in(tmp_path, tmp_path)
    assert ledger.begin_or_keep()
    ledger.note("refused", reason="a reason")
    assert not ledger.begin_or_keep()
    assert [entry["event"] for entry in ledger.read()] == ["refused"]


@pytest.mark.parametrize("missing", ["log", "head"])
def test_half_a_ledger_is_damaged_and_not_missing(tmp_path: Path, missing: str):
    """Who begins another one would forget what was spent."""
    ledger = ledger_in(tmp_path, tmp_path)
    ledger.begin()
    ledger.note("refused", reason="a reason")
    {"log": ledger.log.path, "head": ledger.log.head}[missing].unlink()
    for use in (ledger.read, ledger.begin_or_keep):
        with pytest.raises(InputError) as failure:
            use()
        assert "--begin" not in str(failure.value)
    assert not {"log": ledger.log.path, "head": ledger.log.head}[missing].exists()


def test_a_site_with_the_state_of_a_run_begins_no_ledger(tmp_path: Path):
    (tmp_path / STATE / "abc1").mkdir(parents=True)
    with pytest.raises(InputError, match="the state of 1 run,"):
        ledger_in(tmp_path, tmp_path).begin()


def test_an_entry_that_repeats_the_last_one_is_not_written(tmp_path: Path):
    ledger = ledger_in(tmp_path, tmp_path)
    ledger.begin()
    for reason in ("one", "one", "two", "one"):
        ledger.note("refused", reason=reason)
    assert [entry["reason"] for entry in ledger.read()] == ["one", "two", "one"]


def test_profiles_are_bounded_by_the_profiles_of_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Answers to other tasks do not count with them."""
    monkeypatch.setattr(ledgers, "MOST_FREE", 3)
    ledger = ledger_in(tmp_path, tmp_path)
    ledger.begin()
    with ledger.locked() as pages:
        for _ in range(5):
            pages.answer("abc1", "train", 1, 7)
        for _ in range(3):
            pages.answer("abc1", PROFILE, 0, 7)
        with pytest.raises(InputError, match="3 profiles were sent today"):
            pages.answer("abc1", PROFILE, 0, 7)
        pages.answer("abc1", "train", 1, 7)
