"""An older copy of a site's whole folder is noticed by a mark outside it: no count is ever set back."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy import ledger_mark
from fftmoe.deploy.account import describe_ledger
from fftmoe.deploy.door import Door
from fftmoe.deploy.ledger import ledger_in
from fftmoe.engines.failures import CodedError
from fftmoe.errors import InputError
from fftmoe.setup.site_request import SiteRows
from policies import allow
from site_recipes import job_of, recipe
from sites import fails_as

MOST = 5  # rounds that the policy grants, and the recipe has


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose policy names a mark outside its folder."""
    folder = tmp_path / "site"
    allow(folder, recipe(), mark=str(tmp_path / "outside.mark"), most_rounds=MOST)
    return folder


def serve(folder: Path) -> None:
    door, asked = Door(folder, own_model=False), CheckedRequest("train", 1)
    admitted = door.admit(job_of(recipe()))
    door.count(admitted, asked, SiteRows(29), 10)
    (folder / "state" / "abc1").mkdir(parents=True, exist_ok=True)
    door.answered(admitted, asked, 10)


def copied(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def test_an_older_copy_of_the_whole_folder_refuses(site: Path, tmp_path: Path):
    serve(site)
    backup = copied(site, tmp_path / "backup")
    serve(site)
    newest = copied(site, tmp_path / "newest")
    copied(backup, site)
    with fails_as("policy", "is not the ledger that this site kept, or an older copy of it: .*outside.mark"):
        serve(site)
    with pytest.raises(InputError, match="older copy"):
        describe_ledger(site)
    copied(newest, site)
    serve(site)


def test_without_such_a_mark_an_older_folder_cannot_be_noticed(tmp_path: Path):
    """What is out of reach within the folder; a test, so that the page which says so stays true."""
    site = tmp_path / "site"
    allow(site, recipe(), most_rounds=MOST)
    serve(site)
    backup = copied(site, tmp_path / "backup")
    serve(site)
    copied(backup, site)
    serve(site)


def test_a_mark_that_is_missing_refuses_until_a_person_sets_it(site: Path, tmp_path: Path):
    serve(site)
    (tmp_path / "outside.mark").unlink()
    with fails_as("policy", r"the mark .*outside.mark, which is missing .*restore it.*cp .*ledger.head .*outside.mark"):
        serve(site)
    shutil.copy(site / "ledger.head", tmp_path / "outside.mark")
    serve(site)
    assert (tmp_path / "outside.mark").read_bytes() == (site / "ledger.head").read_bytes()


def test_a_mark_of_a_site_that_answered_begins_no_new_ledger(site: Path, tmp_path: Path):
    serve(site)
    for name in ("ledger.jsonl", "ledger.head"):
        (site / name).unlink()
    shutil.rmtree(site / "state")
    with pytest.raises(InputError, match="has answered before"):
        ledger_in(site, site, tmp_path / "outside.mark").begin()


@pytest.mark.parametrize("name", ["outside.mark", "./outside.mark", "{site}/own.mark", "{site}/state/../own.mark"])
def test_a_mark_within_the_folder_or_of_a_relative_name_is_refused(tmp_path: Path, name: str):
    site = tmp_path / "site"
    allow(site, recipe(), mark=name.format(site=site))
    with fails_as("policy", "it must be the full name of a file outside"):
        serve(site)


def test_a_mark_of_an_unknown_user_is_refused_in_one_sentence(tmp_path: Path):
    allow(tmp_path, recipe(), mark="~nobody-of-this-name/own.mark")
    with pytest.raises(InputError, match=r"`mark` of the policy.* cannot be looked up .*name it without ~"):
        describe_ledger(tmp_path)


@pytest.mark.parametrize("name", ["/", "/dev/full", "a\0b", "/tmp/a\0b"])
def test_a_mark_that_can_be_no_file_is_refused_in_one_sentence(tmp_path: Path, name: str):
    """To copy the ledger's head there, as other messages advise, would mend nothing."""
    allow(tmp_path, recipe(), mark=name)
    with pytest.raises(InputError, match=r"`mark` of the policy.*(full name of a file|name another)") as refused:
        describe_ledger(tmp_path)
    assert "cp " not in str(refused.value)


def test_a_mark_that_cannot_be_written_refuses(tmp_path: Path):
    """Nothing was counted, so the site goes on by itself when there is a place for the mark."""
    place = tmp_path / "place"
    place.write_text("")
    allow(tmp_path / "site", recipe(), mark=str(place / "mark"))
    for _ in range(2):
        with pytest.raises(CodedError):
            serve(tmp_path / "site")
    place.unlink()
    serve(tmp_path / "site")


def test_a_site_goes_on_when_there_is_space_for_its_first_mark(site: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing may be counted before: entries without their mark would refuse all until a person makes it."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for _ in range(2):
        with monkeypatch.context() as patch, fails_as("disk", "outside.mark: No space left"):
            patch.setattr(ledger_mark, "write_atomically", refuse)
            serve(site)
    serve(site)


@pytest.mark.parametrize("refused", ["ledger.jsonl", "ledger.head", "ledger.mark", "outside.mark"])
@pytest.mark.parametrize("part", [0, 41])
def test_nothing_is_answered_that_a_full_disk_does_not_take(
    site: Path, tmp_path: Path, refused: str, part: int, monkeypatch: pytest.MonkeyPatch
):
    """The disk takes a part of what is written and reports no error. The site goes on when there is space."""
    serve(site)
    pwrite, refusals = os.pwrite, list[str]()

    def part_of(handle: int, data: bytes, place: int) -> int:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if name != refused or refusals:
            return pwrite(handle, data, place)
        refusals.append(name)
        return pwrite(handle, data[:part], place)

    with monkeypatch.context() as patch, fails_as("disk", "No space left"):
        patch.setattr(os, "pwrite", part_of)
        serve(site)
    assert refusals == [refused]
    assert ledger_in(site, site, tmp_path / "outside.mark").read(), "what was written before is there"
    serve(site)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["serve", "copy", "restore"]), min_size=9, max_size=23))
def test_no_order_of_answers_copies_and_restores_gives_more_than_the_policy_grants(actions: list[str]):
    with tempfile.TemporaryDirectory() as place:
        folder, backup, answered = Path(place) / "site", Path(place) / "backup", 0
        allow(folder, recipe(), mark=f"{place}/outside.mark", most_rounds=MOST)
        for action in actions:
            if action == "copy":
                copied(folder, backup)
            elif action == "restore" and backup.exists():
                copied(backup, folder)
            elif action == "serve":
                try:
                    serve(folder)
                except CodedError:
                    continue
                answered += 1
        assert answered <= MOST
