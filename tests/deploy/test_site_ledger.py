"""A site's ledger: what was asked, answered and refused over all runs and servers, and the epsilon that it has cost."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fftmoe.client.example_privacy import sampling_rate
from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy import ledger as ledgers
from fftmoe.deploy.account import begin_ledger, describe_ledger
from fftmoe.deploy.door import Admitted, Door
from fftmoe.deploy.ledger import ledger_in
from fftmoe.deploy.ledger_account import Account
from fftmoe.engines.failures import CodedError
from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.server.accountant import Adjacency, epsilon_of
from fftmoe.setup.site_request import TRAINING, SiteRows
from policies import allow
from site_recipes import MODES, job_of, recipe
from sites import fails_as

ROWS = 13
DELTA = 1e-3
PRIVATE = recipe(MODES["examples"])
BOTH: dict[str, Any] = {"modes": ["clients", "examples"], "epsilon": 12.0, "delta": 2.5e-3}
STEPS, NOISE = 4, 2.0  # of that recipe


def open_door(folder: Path, *recipes: Any, **changes: Any) -> Door:
    allow(folder, *recipes, **changes)
    return Door(folder, own_model=False)


def private_door(folder: Path, epsilon: float) -> Door:
    return open_door(folder, PRIVATE, privacy={"modes": ["examples"], "epsilon": epsilon, "delta": DELTA})


def train(door: Door, admitted: Admitted, times: int = 1, rows: int = ROWS, round: int = 1) -> None:
    for _ in range(times):
        door.count(admitted, CheckedRequest("train", round), SiteRows(rows), 100)
        door.answered(admitted, CheckedRequest("train", round), 50)


def account(door: Door) -> Account:
    return Account.of(ledger_in(door.folder, door.folder).read())


def cost(*rows: int) -> float:
    """Epsilon of one round for each of these numbers of rows."""
    made = [Release(sampling_rate(8, number), NOISE, STEPS) for number in rows]
    return epsilon_of(made, DELTA, Adjacency.EXAMPLE_REPLACED)


def test_every_release_is_counted_with_its_own_sampling_rate(tmp_path: Path):
    """A site that loses rows between two runs has drawn the rest more often; one that gains rows does not become safer
    in hindsight."""
    door = private_door(tmp_path, epsilon=7.0)
    for run, rows in {"abc1": 97, "abc2": 59, "abc3": 71}.items():
        train(door, door.admit(job_of(PRIVATE, run=run)), rows=rows)
    assert account(door).epsilon(DELTA) == pytest.approx(cost(97, 59, 71))
    assert cost(97, 59, 71) > cost(97, 97, 97)
    assert account(door).releases == tuple(Release(sampling_rate(8, rows), NOISE, STEPS) for rows in (97, 59, 71))


def test_no_more_epsilon_than_the_policy_grants_over_all_runs(tmp_path: Path):
    """What a server asks is counted when it is asked, whether or not the answer leaves."""
    door = private_door(tmp_path, epsilon=7.0)
    granted = sum(cost(*[ROWS] * times) <= 7.0 for times in range(1, 5))
    for number in range(granted):
        admitted = door.admit(job_of(PRIVATE, run=f"run{number}"))
        door.count(admitted, CheckedRequest("train", 1), SiteRows(ROWS), 10)
    last = door.admit(job_of(PRIVATE, run="last"))
    for ask in (lambda: train(door, last), lambda: door.count_profile(last, SiteRows(ROWS))):
        with fails_as("policy", r"epsilon of [\d.]+ at delta 0.001, and `privacy.epsilon` grants 7 over all runs"):
            ask()
    assert granted == 2
    assert account(door).epsilon(DELTA) <= 7.0 < cost(*[ROWS] * (granted + 1))
    # The runs' own states are removed, and the server forgets them: nothing is given back.
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    with fails_as("policy", "grants 7 over all runs"):
        train(door, door.admit(job_of(PRIVATE, run="again")))


def test_two_sites_with_the_same_rows_share_a_ledger(tmp_path: Path):
    """Two deployments, of two servers: the second finds what the first has spent."""
    rights = {"modes": ["examples"], "epsilon": 7.0, "delta": DELTA}
    first, second = (
        open_door(tmp_path / name, PRIVATE, privacy=rights, ledger="../shared") for name in ("first", "second")
    )
    (tmp_path / "shared").mkdir()
    ledger_in(tmp_path / "shared", first.folder).begin()
    for run in ("abc1", "abc2"):
        train(first, first.admit(job_of(PRIVATE, run=run)))
    with fails_as("policy", "grants 7 over all runs"):
        train(first, first.admit(job_of(PRIVATE, run="abc3")))
    with fails_as("policy", "grants 7 over all runs"):
        train(second, second.admit(job_of(PRIVATE, run="other")))


def test_what_left_without_noise_has_no_epsilon(tmp_path: Path):
    """A site that has answered in the clear cannot promise an epsilon for the same rows any more."""
    plain = recipe()
    door = open_door(tmp_path, plain)
    train(door, door.admit(job_of(plain)))
    assert account(door).epsilon(DELTA) == math.inf
    assert "no epsilon bounds what the rows have lost" in describe_ledger(tmp_path)[-1]
    door = private_door(tmp_path, epsilon=7.0)
    with fails_as("policy", "epsilon of inf"):
        train(door, door.admit(job_of(PRIVATE, run="abc2")))


def test_stated_epsilons_of_servers_are_added_once_for_each_run(tmp_path: Path):
    private = recipe(MODES["clients"])  # states epsilon 3 and delta 1e-3
    both = BOTH
    door = open_door(tmp_path, private, PRIVATE, privacy=both)
    admitted = door.admit(job_of(private, run="abc1"))
    train(door, admitted, 5)
    assert account(door).epsilon(both["delta"]) == 3.0
    train(door, door.admit(job_of(private, run="abc2")))
    assert account(door).epsilon(both["delta"]) == 6.0
    for run, other in (("abc3", private), ("abc4", PRIVATE)):  # no delta is left
        with fails_as("policy", "epsilon of inf at delta 0.0025"):
            train(door, door.admit(job_of(other, run=run)))
    train(door, admitted)  # it costs nothing more


def test_next_to_own_releases_what_servers_state_counts_for_replaced_examples():
    """A server compares with a site that never sends anything; an example is replaced in two such steps."""
    own, stated = (Release(0.5, NOISE, STEPS),), {"one": (0.25, 1e-4), "other": (0.5, 2e-4)}
    alone = Account({TRAINING: 2}, 0, (), stated)  # type: ignore[arg-type]
    assert alone.epsilon(1e-3) == 0.75
    left = 1e-3 - (1 + math.exp(0.25)) * 1e-4 - (1 + math.exp(0.5)) * 2e-4
    both = replace(alone, releases=own)
    assert both.epsilon(1e-3) == pytest.approx(1.5 + epsilon_of(own, left, Adjacency.EXAMPLE_REPLACED))
    assert both.epsilon(7e-4) == math.inf
    assert replace(both, stated={"one": (1e4, 1e-9)}).epsilon(1e-3) == math.inf


def test_two_servers_may_give_two_runs_the_same_name(tmp_path: Path):
    """Neither may ride on what the other has paid, nor bind the other's run to its recipe."""
    private = recipe(MODES["clients"])
    open_door(tmp_path, private, recipe({**MODES["clients"], "seed": 1}), privacy=BOTH)
    one, two = (Door(tmp_path, own_model=False, server=name) for name in ("one.example:9092", "two.example:9092"))
    train(one, one.admit(job_of(private)))
    train(two, two.admit(job_of(private)))
    assert account(one).epsilon(BOTH["delta"]) == 6.0
    three = Door(tmp_path, own_model=False, server="three.example:9092")
    three.admit(job_of(recipe({**MODES["clients"], "seed": 1})))
    assert "recipe sha256:" in describe_ledger(tmp_path)[0]
    assert "of one.example:9092" in describe_ledger(tmp_path)[0]


@pytest.mark.parametrize(("rows", "allowed"), [(999, True), (1000, False)])
def test_a_delta_that_allows_one_row_to_be_revealed_is_refused(tmp_path: Path, rows: int, allowed: bool):
    door = private_door(tmp_path, epsilon=7.0)
    admitted = door.admit(job_of(PRIVATE))
    if allowed:
        door.count(admitted, CheckedRequest("train", 1), SiteRows(rows), 10)
    else:
        with fails_as("policy", "allow the site to reveal one of its 1,000 rows entirely"):
            door.count(admitted, CheckedRequest("train", 1), SiteRows(rows), 10)


def test_an_answer_is_on_the_disk_before_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    door = open_door(tmp_path, recipe())
    admitted = door.admit(job_of(recipe()))
    door.count(admitted, CheckedRequest("train", 1), SiteRows(ROWS), 10)

    def refuse(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with fails_as("disk", "Input/output error"):
        door.answered(admitted, CheckedRequest("train", 1), 50)
    with fails_as("disk", "Input/output error"):
        door.count_profile(admitted, SiteRows(ROWS))
    monkeypatch.undo()
    assert [entry["event"] for entry in ledger_in(tmp_path, tmp_path).read()] == ["opened", "asked", "failed"]


SPOILT: dict[str, Callable[[Path], object]] = {
    "it is lost": lambda site: [path.unlink() for path in site.glob("ledger.*")],
    "its lines are lost": lambda site: (site / "ledger.jsonl").unlink(),
    "its head is lost": lambda site: (site / "ledger.head").unlink(),
    "its last line is lost": lambda site: cut(site / "ledger.jsonl", -1),
    "its first line is lost": lambda site: cut(site / "ledger.jsonl", 0),
    "it is empty": lambda site: (site / "ledger.jsonl").write_bytes(b""),
    "one number has changed": lambda site: (site / "ledger.jsonl").write_bytes(
        (site / "ledger.jsonl").read_bytes().replace(b'"round":1', b'"round":2', 1)
    ),
}


def cut(path: Path, line: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[line]
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_ledger_refuses_everything_and_is_not_begun_again(tmp_path: Path, kind: str):
    door = open_door(tmp_path, recipe())
    admitted = door.admit(job_of(recipe()))
    (tmp_path / "state" / "abc1").mkdir(parents=True)
    train(door, admitted)
    SPOILT[kind](tmp_path)
    for ask in (
        lambda: door.admit(job_of(recipe())),
        lambda: door.admit(job_of(recipe(), run="abc2")),
        lambda: door.count(admitted, CheckedRequest("train", 2), SiteRows(ROWS), 10),
        lambda: door.answered(admitted, CheckedRequest("train", 2), 10),
        lambda: door.count_profile(admitted, SiteRows(ROWS)),
    ):
        with fails_as("policy", r"(damaged|missing).*restore"):
            ask()
    with pytest.raises(InputError, match=r"has answered before|exists"):
        ledger_in(tmp_path, tmp_path).begin()
    with pytest.raises(InputError, match=r"damaged|missing"):
        describe_ledger(tmp_path)


def test_a_site_without_a_ledger_is_told_how_to_begin_one(tmp_path: Path):
    door = open_door(tmp_path, recipe())
    for path in tmp_path.glob("ledger.*"):
        path.unlink()
    with fails_as("policy", "is missing: .*never answered: fftmoe deploy site ledger --begin"):
        door.admit(job_of(recipe()))
    assert not list(tmp_path.glob("ledger.json*"))


def test_a_ledger_that_is_older_than_the_states_of_the_site_is_refused(tmp_path: Path):
    """It was replaced by an old copy, or by a new one."""
    door = open_door(tmp_path, recipe())
    door.admit(job_of(recipe(), run="abc1"))
    copies = {path.name: path.read_bytes() for path in tmp_path.glob("ledger.*")}
    admitted = door.admit(job_of(recipe(), run="abc2"))
    for run in ("abc1", "abc2"):
        (tmp_path / "state" / run).mkdir(parents=True)
    train(door, admitted)
    for name, data in copies.items():
        (tmp_path / name).write_bytes(data)
    with fails_as("policy", "does not know the runs abc2"):
        door.admit(job_of(recipe(), run="abc2"))


@pytest.mark.parametrize("asked", [1, 2])
@pytest.mark.parametrize("runs", ["kept", "deleted"])
def test_an_older_copy_of_the_ledger_with_its_head_is_refused(tmp_path: Path, asked: int, runs: str):
    """The copy fits itself, and knows every run; otherwise the site would have its whole budget again."""
    door = private_door(tmp_path, epsilon=cost(ROWS, ROWS, ROWS) + 0.1)
    admitted = door.admit(job_of(PRIVATE))
    (tmp_path / "state" / "abc1").mkdir()
    copies = {}
    for times in range(3):
        copies[times] = {path.name: path.read_bytes() for path in tmp_path.glob("ledger.*")}
        train(door, admitted, round=times + 1)
    if runs == "deleted":
        (tmp_path / "state" / "abc1").rmdir()
    for name, data in copies[asked].items():
        (tmp_path / name).write_bytes(data)
    for reader in (door, private_door(tmp_path, epsilon=99.0)):
        with fails_as("policy", "or an older copy of it"):
            reader.admit(job_of(PRIVATE))
    for path in tmp_path.glob("ledger.*"):
        path.unlink()
    with pytest.raises(InputError, match="has answered before"):
        ledger_in(tmp_path, tmp_path).begin()


def test_a_mark_that_cannot_be_read_or_written_refuses(tmp_path: Path):
    door = open_door(tmp_path, recipe())
    admitted = door.admit(job_of(recipe()))
    mark = tmp_path / "state" / "ledger.mark"
    whole = mark.read_bytes()
    for spoilt in (b"", b"{}", whole[:40], whole.replace(b'"lines": 1', b'"lines": 7')):
        mark.write_bytes(spoilt)
        with fails_as("policy", "ledger.mark"):
            door.admit(job_of(recipe()))
    mark.write_bytes(whole)
    train(door, admitted)
    assert mark.read_bytes() == (tmp_path / "ledger.head").read_bytes() != whole


def test_a_run_is_written_before_its_state_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Otherwise a site that is killed in between would refuse its own state."""
    synced: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    door = open_door(tmp_path, recipe())
    monkeypatch.setattr(os, "fsync", note)
    door.admit(job_of(recipe()))
    assert synced[0] == "ledger.jsonl"


def test_a_server_cannot_fill_the_disk_with_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledgers, "MOST_FREE", 7)
    door = open_door(tmp_path, recipe())
    for seed in [1, 1, 1, *range(20)]:  # the same again and again is one entry
        if seed:
            with fails_as("policy", "is not approved"):
                door.admit(job_of(recipe({"seed": seed})))
    entries = ledger_in(tmp_path, tmp_path).read()
    assert len(entries) == 7
    assert "no more of today's entries 'refused'" in entries[-1]["note"]
    for number in range(7):
        admitted = door.admit(job_of(recipe(), run=f"run{number}"))
        door.count_profile(admitted, SiteRows(ROWS))
    with fails_as("policy", "7 runs were opened today"):
        door.admit(job_of(recipe(), run="run7"))
    with fails_as("policy", "7 profiles were sent today"):
        door.count_profile(door.admit(job_of(recipe(), run="run6")), SiteRows(ROWS))
    train(door, door.admit(job_of(recipe(), run="run6")))
    later = "2999-01-01T00:00:00.000+00:00"
    monkeypatch.setattr(ledgers, "time_now", lambda: later)
    door.count_profile(door.admit(job_of(recipe(), run="tomorrow")), SiteRows(ROWS))


@pytest.mark.parametrize("other", ["1999-01-01", "2999-01-01"])
def test_a_clock_that_was_wrong_sets_no_count_back_and_locks_nobody_out(
    tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
):
    """The clock is years ahead or behind for some entries, before or after those of the right day."""
    monkeypatch.setattr(ledgers, "MOST_FREE", 3)
    days = {"right": "2099-06-01", "wrong": other}

    def describe(day: str, times: int) -> None:
        monkeypatch.setattr(ledgers, "time_now", lambda: f"{days[day]}T00:00:00.000+00:00")
        admitted = door.admit(job_of(recipe()))
        for _ in range(times):
            door.count_profile(admitted, SiteRows(ROWS))

    door = open_door(tmp_path, recipe())
    describe("right", 2)
    describe("wrong", 3)
    train(door, door.admit(job_of(recipe())), times=2)
    describe("right", 1)
    if other > days["right"]:  # what an earlier day says ends the count of a day
        with fails_as("policy", "3 profiles were sent today"):
            describe("right", 1)
    assert account(door).times == {TRAINING: 2}
    assert "trained 2 times" in "\n".join(describe_ledger(tmp_path))


def test_the_words_of_a_refusal_are_short_and_harmless_on_a_terminal(tmp_path: Path):
    door = open_door(tmp_path, recipe())
    with fails_as("policy", "is not approved"):
        door.admit(job_of(recipe({"data": {"text": "\x1b[2J" * 3000}})))
    [entry] = ledger_in(tmp_path, tmp_path).read()
    assert len(entry["why"]) <= 400
    assert "\x1b" not in "".join(describe_ledger(tmp_path))


def test_the_printed_ledger_says_what_was_asked_answered_and_refused(tmp_path: Path):
    door = private_door(tmp_path, epsilon=7.0)
    admitted = door.admit(job_of(PRIVATE, run="abc1"))
    door.count_profile(admitted, SiteRows(ROWS))
    train(door, admitted, round=3)
    with fails_as("policy", "not approved"):
        door.admit(job_of(recipe(), run="abc2"))
    with fails_as("training", "a row"), door.failures_noted(admitted, CheckedRequest("train", 4)):
        raise CodedError(ledgers_failure()) from ValueError("a row")
    lines = describe_ledger(tmp_path)
    words = [
        f"opened; run 'abc1'; recipe {admitted.request.digest} of the server",
        "answered; profile, round 0; run 'abc1'",
        "asked; training, round 3; run 'abc1'",
        "answered; training, round 3; run 'abc1'; 50 bytes",
        "refused; run 'abc2'; code policy",
        "failed; training, round 4; run 'abc1'; code training: 'a row'",
        "1 run; 2 answers, 50 bytes; 1 refusal; 1 failure",
        "trained 1 time of 1000",
        f"spent an epsilon of {cost(ROWS):.4g} of 7, at delta 0.001",
        "compared are data in which one example of a client is replaced by any other",
    ]
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert word in line
    assert "noise 2 at sampling rate 0.615, 4 times" in lines[2]


def ledgers_failure() -> Any:
    from fftmoe.engines.failures import Failure

    return Failure.TRAINING


def test_a_ledger_is_begun_in_a_folder_that_somebody_made(tmp_path: Path):
    """A mistyped `ledger` must not make a second account beside the one that sites with the same rows share."""
    site, shared = tmp_path / "site", tmp_path / "shared"
    allow(site, recipe(), ledger="../shared")
    with pytest.raises(InputError, match="shared of `ledger` does not exist; make it"):
        begin_ledger(site)
    assert not shared.exists()
    shared.mkdir(mode=0o700)
    assert str(site / "../shared") in begin_ledger(site)
    assert ledger_in(shared, site).read() == []
