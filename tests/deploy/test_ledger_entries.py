"""What begins a site's ledger, and which entries it takes."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fftmoe.deploy import ledger as ledgers
from fftmoe.deploy.ledger import LONGEST_TEXT, STATE, ledger_in
from fftmoe.deploy.ledger_account import Cost
from fftmoe.errors import InputError, OutputError
from fftmoe.records import Release
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


KEY = ("server", "abc1", "digest")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ledgers.SiteLedger:
    """A ledger that takes three free entries of each kind a day."""
    monkeypatch.setattr(ledgers, "MOST_FREE", 3)
    made = ledger_in(tmp_path, tmp_path)
    made.begin()
    return made


def test_a_ledger_that_is_missing_is_not_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"this site's ledger is missing: .*--begin"):
        ledger_in(tmp_path, tmp_path).read()


def test_a_ledger_knows_the_runs_whose_state_the_site_keeps(ledger: ledgers.SiteLedger):
    with ledger.locked() as pages:
        pages.open(KEY, "name")
    (ledger.site / STATE / "abc1").mkdir(parents=True)
    ledger.read()
    (ledger.site / STATE / "abc2").mkdir()
    with pytest.raises(InputError, match="does not know the runs abc2 in"):
        ledger.read()


def test_a_site_with_a_mark_begins_no_ledger(ledger: ledgers.SiteLedger):
    ledger.note("refused", reason="a reason")
    for path in (ledger.log.path, ledger.log.head):
        path.unlink()
    with pytest.raises(InputError, match="or there is a mark, so this site has answered before"):
        ledger.begin()


def test_an_older_copy_of_a_ledger_is_refused(ledger: ledgers.SiteLedger):
    files = (ledger.log.path, ledger.log.head)
    with ledger.locked() as pages:
        pages.open(KEY, "name")
    for path in files:
        shutil.copy(path, path.with_name(f"{path.name}.copy"))
    with ledger.locked() as pages:
        pages.answer("abc1", "train", 1, 7)
    for path in files:
        shutil.copy(path.with_name(f"{path.name}.copy"), path)
    with pytest.raises(InputError, match="or an older copy of it"):
        ledger.read()


def test_a_mark_outside_is_made_before_the_first_entry(ledger: ledgers.SiteLedger, tmp_path: Path):
    mark = tmp_path / "outside" / "mark"
    with ledger_in(tmp_path, tmp_path, mark).locked() as pages:
        assert mark.exists()
        pages.note("refused", reason="a reason")


def test_a_mark_that_cannot_be_made_stops_the_first_entry(
    ledger: ledgers.SiteLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(ledgers, "set_mark", full)
    with pytest.raises(OutputError), ledger_in(tmp_path, tmp_path, tmp_path / "mark").locked() as pages:
        pages.note("refused", reason="a reason")
    assert ledger.log.read() == []


def test_runs_are_opened_until_a_day_has_enough(ledger: ledgers.SiteLedger):
    with ledger.locked() as pages:
        for number in range(3):
            pages.open(("server", f"abc{number}", "digest"), "x" * 999)
        with pytest.raises(InputError, match="3 runs were opened today"):
            pages.open(("server", "abc9", "digest"), "name")
    assert [len(entry["name"]) for entry in ledger.read()] == [LONGEST_TEXT] * 3


RELEASE = Release(0.5, 3.0, 2)


@pytest.mark.parametrize(
    ("cost", "written"),
    [
        (Cost("sums"), {}),
        (Cost("examples", RELEASE), {"release": asdict(RELEASE)}),
        (Cost("clients", None, 2.0, 0.1), {"epsilon": 2.0, "delta": 0.1}),
        (Cost("clients", None, float("inf"), 0.1), {"epsilon": None, "delta": 0.1}),
    ],
)
def test_a_request_is_written_with_its_cost(ledger: ledgers.SiteLedger, cost: Cost, written: dict[str, Any]):
    with ledger.locked() as pages:
        pages.open(KEY, "name")
        pages.ask(KEY, "train", 1, 7, cost)
    entry = ledger.read()[-1]
    told = {name: entry[name] for name in ("release", "epsilon", "delta") if name in entry}
    assert (entry["mode"], told) == (cost.mode, written)


def test_the_last_free_entry_of_a_day_says_that_it_is_the_last(ledger: ledgers.SiteLedger):
    for number in range(5):
        ledger.note("refused", reason=f"{number}" * 999, code=number)
    entries = ledger.read()
    assert [entry["reason"] for entry in entries] == [f"{number}" * LONGEST_TEXT for number in range(3)]
    assert [entry["code"] for entry in entries] == [0, 1, 2]
    assert [entry.get("note") for entry in entries] == [
        *(None, None),
        "no more of today's entries 'refused' are written",
    ]
    ledger.note("failed", reason="another kind")
    assert ledger.read()[-1]["event"] == "failed"


def test_requests_for_profiles_are_no_profiles(ledger: ledgers.SiteLedger):
    with ledger.locked() as pages:
        pages.open(KEY, "name")
        for _ in range(3):
            pages.ask(KEY, PROFILE, 0, 7, Cost("sums"))
        pages.answer("abc1", PROFILE, 0, 7)


def test_entries_of_another_day_do_not_count(ledger: ledgers.SiteLedger, monkeypatch: pytest.MonkeyPatch):
    """Neither those of yesterday, nor those of a day that the clock has shown too early."""
    for day in ("2026-03-04", "2026-03-02", "2026-03-03"):
        monkeypatch.setattr(ledgers, "time_now", lambda day=day: f"{day}T01:02:03.004+00:00")
        for number in range(2):
            ledger.note("refused", reason=f"{number}")
    assert len(ledger.read()) == 6
    assert not any("note" in entry for entry in ledger.read())
