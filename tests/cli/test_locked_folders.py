"""Folders and files that this user may not read, write or search: the command works, or says so in one line."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from run_fixtures import RunTiny
from unprivileged import outcomes

Outcomes = Mapping[str, dict[str, Any]]
NO_WRITE, NO_ACCESS = 0o555, 0o000

# A command, and its place: {ro} cannot be written, {locked} cannot be searched, {file} is a file, {gone} was removed.
REFUSED: dict[str, tuple[str, str]] = {
    "current folder": ("run {recipe}", "{ro}"),
    "parent of the run": ("run {recipe} --output {ro}/x", "{top}"),
    "a file as a parent": ("run {recipe} --output {file}/x", "{top}"),
    "locked parent": ("run {recipe} --output {locked}/x", "{top}"),
    "locked data": ("run {recipe} --output a --set data.source={data}", "{top}"),
    "data in a locked folder": ("run {recipe} --output a --set data.source={locked}/x", "{top}"),
    "locked model": ("run {recipe} --output a --set backbone.model={model}", "{top}"),
    "model in a locked folder": ("run {recipe} --output a --set backbone.model={locked}/x", "{top}"),
    "recipe in a locked folder": ("run {locked}/x.yaml --output a", "{top}"),
    "locked adapter": ("evaluate {noadapter}", "{top}"),
    "locked run": ("evaluate {locked}/run", "{top}"),
    "page": ("report {rorun}", "{top}"),
    "export": ("export {rorun} --to peft --output {ro}/x", "{top}"),
    "init": ("init {train}", "{ro}"),
    "compare": ("compare {recipe} --methods fft-moe,fedit", "{ro}"),
    "answers": ("predict {rorun} red --output {ro}/x", "{top}"),
    "deployment": ("deploy init {ro}/x --address localhost:9092 --sites a,b", "{top}"),
    "locked class of images": ("init {photos} --output {top}/x.yaml", "{top}"),
    "removed folder": ("run {recipe}", "{gone}"),
    "removed folder and init": ("init {train}", "{gone}"),
}
WORKS: dict[str, tuple[str, str]] = {
    "evaluate": ("evaluate {rorun}", "{ro}"),
    "predict": ("predict {rorun} red --client 3", "{ro}"),
    "export elsewhere": ("export {rorun} --to peft --output {top}/exported", "{ro}"),
    "data that cannot be written": ("run {recipe} --output {top}/b --set data.source={rodata}", "{top}"),
    "removed folder and output": ("run {recipe} --output {top}/c", "{gone}"),
    "removed folder and evaluate": ("evaluate {rorun}", "{gone}"),
}
LESS = " --set federation.rounds=1 --set evaluation.baselines=off --set evaluation.local_only=false"
NAMED = ("ro", "locked", "file", "gone", "data", "rodata", "mine", "model", "rorun", "noadapter", "photos")
CACHES = {"read-only": "{ro}/x", "locked": "{locked}", "file": "{file}", "below-a-file": "{file}/x"}


@pytest.fixture(scope="module")
def places(
    run_tiny: RunTiny, recipe_file: Path, data_folder: Path, backbone_folder: Path, tmp_path_factory: Any
) -> dict[str, Path]:
    top: Path = tmp_path_factory.mktemp("locked")
    found = {name: top / name for name in NAMED}
    for name in ("ro", "locked"):
        found[name].mkdir()
    found["file"].write_text("a file")
    for name in ("cat", "dog"):
        (found["photos"] / name).mkdir(parents=True)
        Image.new("RGB", (7, 5)).save(found["photos"] / name / "1.png")
    copies = {"data": data_folder, "rodata": data_folder, "mine": data_folder, "model": backbone_folder}
    for name, source in copies.items():
        shutil.copytree(source, found[name])
    for name in ("rorun", "noadapter"):
        shutil.copytree(run_tiny("evaluation.local_only=false").folder, found[name])
    for path in (found["ro"], found["rodata"], *found["rorun"].rglob("*/"), found["rorun"]):
        path.chmod(NO_WRITE)
    for path in (
        found["locked"],
        found["data"],
        found["model"],
        found["noadapter"] / "adapter",
        found["photos"] / "dog",
    ):
        path.chmod(NO_ACCESS)
    return {**found, "top": top, "recipe": recipe_file, "train": found["mine"] / "train.csv"}


@pytest.fixture(scope="module")
def found(places: dict[str, Path]) -> Outcomes:
    """What all commands do, in one process."""
    plain = {**REFUSED, **WORKS}
    plain |= {f"cache {name}": (f"run {{recipe}} --output {{top}}/cache-{name}", "{top}") for name in CACHES}
    less = {name: words + LESS * words.startswith("run ") for name, (words, _) in plain.items()}
    commands = {name: words.format_map(places) for name, words in less.items()}
    folders = {name: Path(folder.format_map(places)) for name, (_, folder) in plain.items()}
    caches = {f"cache {name}": Path(folder.format_map(places)) for name, folder in CACHES.items()}
    return outcomes({name: words.split() for name, words in commands.items()}, folders, caches)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_impossible_is_said_in_one_line(found: Outcomes, name: str):
    outcome = found[name]
    assert outcome["status"] == 2, outcome["err"]
    assert outcome["err"].startswith("fftmoe: ")
    assert outcome["err"].count("\n") == 1
    reasons = ("Permission denied", "is a file", "No such file", "not readable", "does not exist")
    assert any(reason in outcome["err"] for reason in reasons), outcome["err"]


def test_init_leaves_nothing_where_it_cannot_write_the_recipe(found: Outcomes, places: dict[str, Path]):
    assert found["init"]["status"] == 2
    assert [path.name for path in places["train"].parent.iterdir() if "split" in path.name] == []


@pytest.mark.parametrize("name", WORKS)
def test_what_needs_no_more_works(found: Outcomes, name: str):
    assert (found[name]["status"], found[name]["err"]) == (0, "")


@pytest.mark.parametrize("name", CACHES)
def test_a_run_without_its_cache_works(found: Outcomes, name: str):
    """Permissions hold here, or nothing would be said."""
    outcome = found[f"cache {name}"]
    assert outcome["status"] == 0, outcome["err"]
    lines = outcome["err"].splitlines()
    assert lines
    assert all(line.startswith(("cannot write the token cache", "no states are cached")) for line in lines)
