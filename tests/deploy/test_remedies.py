"""What a site's refusal tells its operator to do can be done, and after that the site serves again."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy.door import Door
from fftmoe.deploy.files import read_bytes
from fftmoe.errors import FftmoeError, OutputError
from fftmoe.setup.site_request import SiteRows
from fftmoe.store.files import disk_errors
from policies import allow
from shared_fixtures import Cli
from site_recipes import BASE, changed, job_of, recipe

TRAIN = CheckedRequest("train", 1)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site in a folder with a blank in its name, whose policy names a mark elsewhere."""
    folder = tmp_path / "a site"
    (tmp_path / "other disk").mkdir()
    allow(folder, recipe(), mark=str(tmp_path / "other disk" / "site.mark"))
    (folder / "node.key").write_bytes(b"key")
    (folder / "node.key").chmod(0o600)
    serve(folder)
    return folder


def serve(folder: Path) -> None:
    read_bytes(folder / "node.key", private=True)
    door = Door(folder, own_model=False)
    admitted = door.admit(job_of(recipe()))
    door.count(admitted, TRAIN, SiteRows(29), 10)
    door.answered(admitted, TRAIN, 10)


def refusal(folder: Path) -> str:
    with pytest.raises(FftmoeError) as refused:
        serve(folder)
    return str(refused.value.__cause__ or refused.value)


def mark_of(site: Path) -> Path:
    return site.parent / "other disk" / "site.mark"


SHELL: dict[str, Callable[[Path], object]] = {
    "a key that others can read": lambda site: (site / "node.key").chmod(0o640),
    "a policy that others can change": lambda site: (site / "policy.yaml").chmod(0o662),
    "no mark": lambda site: mark_of(site).unlink(),
    "no folder of the mark": lambda site: shutil.rmtree(mark_of(site).parent),
    "a mark of half a line": lambda site: mark_of(site).write_text('{"lines": 1'),
    "half a mark beside the state": lambda site: (site / "state" / "ledger.mark").write_text('{"lines"'),
}
"""What is spoilt of a site; the message has a command of the shell that mends it."""


@pytest.mark.parametrize("what", SHELL)
def test_a_command_in_a_refusal_can_be_pasted_and_mends_it(site: Path, what: str):
    SHELL[what](site)
    words = refusal(site)
    found = re.search(r"(?:mkdir|chmod|cp) .*$", words)
    assert found, words
    subprocess.run(found[0], shell=True, check=True, cwd="/")
    serve(site)


def test_a_site_without_ledger_or_policy_is_told_the_command_for_its_own_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    site, written = tmp_path / "a site", tmp_path / "there.yaml"
    written.write_text(yaml.safe_dump(changed(BASE, {"data": {"source": "data/server"}})))
    allow(site, recipe())
    (site / "node.key").write_bytes(b"key")
    (site / "node.key").chmod(0o600)
    for name in ("ledger.jsonl", "ledger.head"):
        (site / name).unlink()
    monkeypatch.chdir("/")  # an operator may read the message anywhere
    follow(cli, refusal(site), written)
    serve(site)
    (site / "policy.yaml").unlink()
    follow(cli, refusal(site), written)
    serve(site)


def follow(cli: Cli, words: str, recipe_file: Path) -> None:
    """Call what the message names, with the name of a recipe where it says RECIPE."""
    found = re.search(r"fftmoe (deploy site .*?) --site '(.*?)'", words)
    assert found, words
    arguments = [str(recipe_file) if word == "RECIPE" else word for word in found[1].split()]
    outcome = cli(*arguments, "--site", found[2], *(["--yes"] if "review" in arguments else []))
    assert outcome.status == 0, outcome


@pytest.mark.parametrize("gone", ["state", "state/abc1"])
def test_a_refused_write_names_the_folder_that_is_gone(tmp_path: Path, gone: str):
    """Not "free space", and no option that the command does not have."""
    folder = tmp_path / "state" / "abc1"
    folder.mkdir(parents=True)
    shutil.rmtree(tmp_path / gone)
    with pytest.raises(OutputError) as refused, disk_errors(folder / "file"):
        (folder / "file").write_text("")
    assert f"{tmp_path / gone} is no folder, or is there no longer; make it, or put it back" in str(refused.value)
    assert not re.search("free space|--", str(refused.value))
    folder.mkdir(parents=True)
    with disk_errors(folder / "file"):
        (folder / "file").write_text("")


def test_a_write_that_is_not_allowed_asks_for_the_right_to_write(tmp_path: Path):
    path = tmp_path / ("long" * 99)
    with pytest.raises(OutputError, match="use a folder with a shorter name"), disk_errors(path):
        path.write_text("")
    with pytest.raises(OutputError, match="name a file, which may lie in that folder"), disk_errors(tmp_path):
        tmp_path.write_text("")
    with pytest.raises(OutputError, match="let this user write there"), disk_errors(tmp_path):
        raise PermissionError(13, "Permission denied")
