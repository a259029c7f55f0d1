"""A run that was interrupted is resumed, and ends with the bytes that it would have had."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import load_recipe
from fftmoe.setup.run import resume, run
from interrupting import ROUNDS, SETTINGS, Killed, interrupt, results, settings, without_clocks

PLACES = (("in training", 1), ("before the row", 3), ("in training", 4), ("before the checkpoint", 2))


def interrupted() -> list[Any]:
    """Every setting at every place; `make test` takes each setting at two places, in turns."""
    return [
        pytest.param(name, *where, marks=[] if (first + place) % 2 == 0 else pytest.mark.slow)
        for first, name in enumerate(SETTINGS)
        for place, where in enumerate(PLACES)
    ]


@pytest.fixture(scope="module")
def whole(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an uninterrupted run with these settings; each is made once."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            run(load_recipe(recipe_file, settings(name)), made[name])
        return made[name]

    return find


@pytest.mark.parametrize(("name", "place", "round"), interrupted())
def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Path],
    name: str,
    place: str,
    round: int,
):
    expected, folder = whole(name), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, place, round)
        with pytest.raises(Killed):
            run(load_recipe(recipe_file, settings(name)), folder)
    assert not (folder / "summary.json").exists()
    resume(folder)
    assert results(folder) == results(expected)
    assert without_clocks(folder) == without_clocks(expected)


def test_a_run_that_is_interrupted_in_every_round_ends_with_the_same_bytes(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[[str], Path]
):
    """It is interrupted once in every round, and resumed each time."""
    name, folder = "state on clients", tmp_path / "run"
    attempt: Callable[[], Any] = lambda: run(load_recipe(recipe_file, settings(name)), folder)  # noqa: E731
    for t in range(1, ROUNDS + 1):
        with monkeypatch.context() as patch:
            interrupt(patch, "in training", t)
            with pytest.raises(Killed):
                attempt()
        attempt = lambda: resume(folder)  # noqa: E731
    attempt()
    assert results(folder) == results(whole(name))


@pytest.mark.slow
def test_a_killed_run_is_resumed_from_the_command_line(recipe_file: Path, tmp_path: Path, whole: Callable[[str], Path]):
    """It is resumed with another number of workers, which changes nothing."""
    folder, main = tmp_path / "run", "import fftmoe.cli.app as c; c.main()"
    flags = [part for setting in settings("plain") for part in ("--set", setting)]
    with subprocess.Popen(
        [sys.executable, "-c", main, "run", str(recipe_file), "--output", str(folder), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("round   2") for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "summary.json").exists()
    # A line that was being written when the power failed.
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "accu')
    command = [sys.executable, "-c", main, "resume", str(folder), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "continuing after round" in done.stdout
    assert results(folder) == results(whole("plain"))


def test_a_run_that_cannot_be_resumed_is_refused(
    cli: Callable[..., Any], recipe_file: Path, tmp_path: Path, whole: Callable[[str], Path]
):
    finished = whole("plain")
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    refused = cli("resume", finished)
    assert (refused.status, "has finished" in refused.err, "fftmoe run" in refused.err) == (2, True, True)
    half = tmp_path / "half"
    shutil.copytree(finished, half)
    (half / "summary.json").unlink()
    refused = cli("resume", half, "--set", "seed=1")
    assert (refused.status, "seed cannot change" in refused.err) == (2, True)
    refused = cli("resume", tmp_path / "nothing")
    assert (refused.status, "is not a run folder" in refused.err) == (2, True)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_a_run_interrupted_after_its_last_round_is_only_measured_and_saved(
    tmp_path: Path, whole: Callable[[str], Path]
):
    finished, folder = whole("moving average"), tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "adapter")
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    resume(folder)
    assert results(folder) == results(finished)
    assert without_clocks(folder) == without_clocks(finished)


def test_a_damaged_checkpoint_is_passed_over_with_a_message_and_the_bytes_are_the_same(
    cli: Callable[..., Any], tmp_path: Path, whole: Callable[[str], Path]
):
    finished, folder = whole("state on clients"), tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "adapter")
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / f"round-{ROUNDS:06d}.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = cli("resume", folder)
    assert resumed.status == 0
    output = resumed.out.replace("\n", " ")
    assert f"skipped the checkpoint of round {ROUNDS}: {newest} has " in output
    assert f"continuing after round {ROUNDS - 1} of {ROUNDS}" in output
    assert results(folder) == results(finished)
    assert without_clocks(folder) == without_clocks(finished)
    (folder / "summary.json").unlink()
    for path in folder.glob("checkpoints/*.json"):
        path.write_bytes(path.read_bytes()[:-9])
    before = results(folder)
    refused = cli("resume", folder)
    assert refused.status == 2
    assert all(f"round {t}: " in refused.err for t in (ROUNDS, ROUNDS - 1, ROUNDS - 2))
    assert refused.err.count("\n") == 1
    assert results(folder) == before


def test_a_run_that_a_full_disk_ended_is_resumed_when_there_is_space(
    cli: Callable[..., Any],
    recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[[str], Path],
):
    name, folder, replace = "state on clients", tmp_path / "run", os.replace

    def full(old: Path, new: Path) -> None:
        if new.name == "round-000003.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        flags = [part for setting in settings(name) for part in ("--set", setting)]
        ended = cli("run", recipe_file, "--output", folder, *flags)
    assert ended.status == 2
    assert ended.err.startswith(f"fftmoe: cannot write {folder}/checkpoints/round-000003.safetensors: No space left on")
    assert ended.err.endswith(f"then go on: fftmoe resume {folder}\n")
    assert cli("resume", folder).status == 0
    assert results(folder) == results(whole(name))
    assert without_clocks(folder) == without_clocks(whole(name))
