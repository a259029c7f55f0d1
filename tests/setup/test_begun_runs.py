"""A run has begun when all is there that it continues from; its folder has one owner, and is nobody else's to read."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fftmoe.cli.pages import rebuild_report
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError, RunError
from fftmoe.setup.run import resume, run
from fftmoe.store import RunFolder, owned
from interrupting import Killed, interrupt, results
from private_runs import NOISY
from run_fixtures import RunTiny
from shared_fixtures import Cli, assert_refused

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "private": {"privacy": NOISY, "adapter": {"num_experts": 5, "expert_dim": 4, "residents": "balanced"}},
}


def recipe_of(values: dict[str, Any], name: str) -> Any:
    short = {
        "federation": {**values["federation"], "rounds": 1, "local_steps": 1},
        "evaluation": {"baselines": "off"},
        "trackers": [],
    }
    short["data"] = {**values["data"], "labels": ["blue", "green", "red"]}
    return parse_recipe({**values, **short, **SETTINGS[name]}, name)


@pytest.mark.parametrize("name", SETTINGS)
def test_whichever_file_of_a_beginning_is_the_last_one_the_same_command_goes_on(
    recipe_values: dict[str, Any], tmp_path: Path, name: str
):
    """The process is killed before each file is in place, until there is a run."""
    recipe, count = recipe_of(recipe_values, name), 0
    real = os.replace
    while True:
        folder, left = tmp_path / f"run-{count}", iter(range(count, -1, -1))

        def replace(old: Any, new: Any, left: Any = left, folder: Path = folder) -> None:
            if Path(new).is_relative_to(folder) and not next(left):
                raise Killed
            real(old, new)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises((Killed, RunError)):  # the latter in a client
                run(recipe, folder)
        if (folder / "config.yaml").exists():
            break
        (folder / "lock").write_text('{"pid": 1, "host": "another", "started": 1}')  # as a killed process leaves it
        (folder / ".config.yaml.123.tmp").touch()
        run(recipe, folder)
        count += 1
    resume(folder)
    assert count == {"plain": 2, "private": 3}[name]
    if name == "plain":
        assert results(folder) == results(tmp_path / "run-0")


def test_a_folder_of_somebody_else_is_no_cut_off_beginning(recipe_values: dict[str, Any], tmp_path: Path):
    for name in ("notes.txt", "clients/000001/x", "checkpoints/round-000001.json", "summary.json", "adapter/x"):
        folder = tmp_path / name.replace("/", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
        (folder / "bindings.json").touch()
        with pytest.raises(InputError, match="holds other files"):
            run(recipe_of(recipe_values, "plain"), folder)
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 2


def test_a_run_that_somebody_runs_is_neither_resumed_nor_begun_again(
    cli: Cli, recipe_file: Path, recipe_values: dict[str, Any], tmp_path: Path
):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "in training", 1)
        with pytest.raises(Killed):
            run(recipe_of(recipe_values, "plain"), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with owned(folder):
        assert_refused(cli("resume", folder)._replace(out=""), f"{folder} is in use by process {os.getpid()}")
        assert_refused(cli("run", recipe_file, "--output", folder)._replace(out=""), "another run")
        assert before.items() <= {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}.items()
    assert cli("resume", folder).status == 0
    empty = tmp_path / "empty"
    with owned(empty):
        assert_refused(cli("run", recipe_file, "--output", empty)._replace(out=""), "is in use by process")
    assert not empty.exists()


def test_a_run_folder_is_for_its_owner_only_whatever_the_process_usually_does(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FFTMOE_CACHE", str(tmp_path / "cache"))
    values = {**recipe_values, "adapter": {**recipe_values["adapter"], "router": "personal"}}
    old = os.umask(0)
    try:
        run(recipe_of(values, "plain"), tmp_path / "run")
    finally:
        os.umask(old)
    found = [tmp_path / "run", *(tmp_path / "run").rglob("*"), tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert len(found) > 15
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


@pytest.mark.parametrize("method", ["fft-moe", "centralized", "local-only", "fedit", "head-only"])
def test_a_report_that_is_made_again_is_the_page_of_the_run(run_tiny: RunTiny, tmp_path: Path, method: str):
    folder = run_tiny(f"method={method}", "federation.rounds=1", "evaluation.local_only=false").folder
    page = (folder / "report.html").read_bytes()
    assert rebuild_report(folder, tmp_path / "again.html").read_bytes() == page
    assert rebuild_report(folder).read_bytes() == page


def test_a_report_of_damaged_rows_says_which_rows_are_left_out(run_tiny: RunTiny, tmp_path: Path):
    folder = run_tiny("federation.rounds=3", "evaluation.local_only=false").folder
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"loss", b"l\x00ss", 1)
    lines[2] = lines[2][:40] + b"\n"
    (folder / "metrics.jsonl").write_bytes(b"".join(lines))
    assert [row.values["round"] for row in RunFolder(folder).rows.read()] == [0, 3]
    assert "rows of rounds 1, 2 are damaged" in rebuild_report(folder, tmp_path / "page.html").read_text()
