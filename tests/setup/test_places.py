"""A run is used from any folder, its paths may hold anything, and the commands that are printed can be pasted."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.shown import quoted
from finished import Finished, check_advice, check_same
from shared_fixtures import Cli

SOURCE = Path(__file__).parents[2] / "src" / "fftmoe"
DATA, MODEL, RUN = "da ta/Präp'arate", "mo dels/kleines Bert", "läufe/my run; echo $HOME"


@pytest.fixture
def project(recipe_values: dict[str, Any], data_folder: Path, backbone_folder: Path, tmp_path: Path) -> Path:
    """A folder with a recipe that names its data and its model from there."""
    place = tmp_path / "pro ject"
    shutil.copytree(data_folder, place / DATA)
    shutil.copytree(backbone_folder, place / MODEL)
    values = {**recipe_values, "trackers": [], "evaluation": {"baselines": "off"}, "backbone": {"model": MODEL}}
    values["data"] = {**recipe_values["data"], "source": DATA}
    (place / "mine.yaml").write_text(yaml.safe_dump(values))
    return place


def test_a_run_is_used_from_any_folder(cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    done = cli("run", "mine.yaml", "--output", RUN)
    assert (done.status, done.err) == (0, "")
    here = cli("evaluate", RUN)
    monkeypatch.chdir("/")
    there = cli("evaluate", project / RUN)
    assert (there.status, there.err, there.out) == (0, here.err, here.out)
    for arguments in (("predict", project / RUN, "red ash"), ("predict", project / RUN, "red ash", "--client", 3)):
        assert cli(*arguments).status == 0
    exported = cli("export", project / RUN, "--to", "peft", "--output", tmp_path / "ex port")
    assert (exported.status, exported.err) == (0, "")
    # A folder of the same name elsewhere is not taken for that of the run.
    elsewhere = tmp_path / "else where"
    shutil.copytree(project / DATA, elsewhere / DATA)
    (elsewhere / DATA / "test.csv").write_text("text,label,author\nred ash,red,author-1\n")
    monkeypatch.chdir(elsewhere)
    assert cli("evaluate", project / RUN).out == here.out


def test_a_project_that_was_moved_is_used_from_its_new_place(
    cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project)
    assert cli("run", "mine.yaml", "--output", RUN).status == 0
    here = cli("evaluate", RUN)
    monkeypatch.chdir("/")
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert cli("evaluate", RUN).out == here.out


def test_a_run_is_resumed_from_another_folder(cli: Cli, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    assert cli("run", "mine.yaml", "--output", RUN).status == 0
    whole = Finished(project / RUN)
    shutil.copytree(project / RUN, project / "stopped")
    (project / "stopped" / "summary.json").unlink()
    shutil.rmtree(project / "stopped" / "adapter")
    monkeypatch.chdir("/")
    assert cli("resume", project / "stopped").status == 0
    assert check_same(whole, Finished(project / "stopped")) > 2
    assert cli("evaluate", project / "stopped").status == 0  # the place is still known


def test_the_commands_that_are_printed_can_be_pasted(cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    shown = cli("run", "mine.yaml", "--output", RUN).out
    check_advice(shown, RUN)
    assert json.loads(cli("predict", RUN, "some text").out)["label"]


@settings(max_examples=50)
@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1))
def test_a_quoted_path_is_one_word_that_is_no_option(text: str):
    (word,) = shlex.split(quoted(text))
    assert not word.startswith("-")
    assert Path(word) == Path(text)


def test_no_command_is_printed_with_a_path_that_is_not_quoted():
    verbs = "run|resume|plan|init|evaluate|predict|report|export|compare|deploy [a-z ]+"
    bare = re.compile(rf"fftmoe (?:{verbs}) (?:--[a-z]+ )?\{{(?!quoted\(|server\}})")
    lines = [(path, line) for path in SOURCE.rglob("*.py") for line in path.read_text().splitlines()]
    assert [(path, line) for path, line in lines if bare.search(line)] == []
    assert len([line for _, line in lines if "{quoted(" in line]) > 9
