"""The worker processes of a comparison: a failed or killed run stops no other, and no worker outlives its parent."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fftmoe.comparison.workers import run_jobs
from fftmoe.config import parse_recipe
from fftmoe.errors import RunError
from fftmoe.setup.cells import Cell


def fake_run(cell: Cell, folder: Path) -> None:
    """Seed 1 ends its process, seed 2 raises an expected error, and seed 3 an unexpected one."""
    if cell.seed == 1:
        os._exit(9)
    if cell.seed == 2:
        raise RunError("the loss became nan")
    if cell.seed == 3:
        raise ZeroDivisionError("by zero")
    folder.mkdir()


def test_a_process_that_dies_stops_no_other(recipe_values: dict[str, Any], tmp_path: Path):
    cells = [Cell("a", "iid", seed, parse_recipe({**recipe_values, "seed": seed}, "")) for seed in range(6)]
    jobs = [(cell, tmp_path / str(cell.seed)) for cell in cells]
    ends = dict(run_jobs(jobs, fake_run, workers=2))
    assert sorted(ends) == list(range(6))
    assert "died (exit status 9)" in (ends[1] or "")
    assert ends[2] == "the loss became nan"
    assert (ends[3] or "").startswith("ZeroDivisionError: by zero\n\nTraceback")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "4", "5"]


def endless_run(cell: Cell, folder: Path) -> None:
    folder.mkdir()
    time.sleep(600)


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    """Otherwise a comparison that is started again would share its folders with them."""
    main = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_workers as t\n"
        "list(t.run_jobs([(None, pathlib.Path(path)) for path in sys.argv[2:]], t.endless_run, workers=2))"
    )
    folders = [tmp_path / "0", tmp_path / "1"]
    command = [sys.executable, "-c", main, str(Path(__file__).parent), *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not all(folder.exists() for folder in folders):
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
        process.communicate(timeout=30)  # the workers hold the pipe, so it closes with the last of them
