"""The verdicts on the goals, computed from cells with invented numbers."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from fftmoe.errors import InputError

PARTITIONS = ("iid", "shards:2", "shards:1", "bernoulli-dirichlet:0.5:0.3")


@pytest.fixture
def goals(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("goals")


def line(method: str, partition: str, seed: int, curve: list[float], **changes: Any) -> dict[str, Any]:
    """A stored cell; a round takes 10 bytes up and 20 down."""
    rows = [[t, accuracy, 10 * t, 20 * t, 1.0 * t] for t, accuracy in enumerate(curve)]
    place = {"data": "d", "variant": f"{method}+h", "method": method, "head": "h", "partition": partition, "seed": seed}
    return {**place, "status": "done", "machine": 0, "accuracy": curve[-1], "rows": rows, **changes}


def stored(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps({"scale": "committed", "machines": [{}], "cells": lines}))
    return path


def grid() -> list[dict[str, Any]]:
    """Two seeds: ours keeps (0.8 + 0.7 + 0.9) / 3 of 0.8, is 0.05 below centralized, and 0.1 above fedit."""
    cells = []
    for seed in (0, 1):
        for partition, final in zip(PARTITIONS, (0.8, 0.8, 0.7, 0.9), strict=True):
            cells.append(line("fft-moe", partition, seed, [0.1, final - 0.1, final, final, final]))
            cells.append(line("fedit", partition, seed, [0.1, 0.2, 0.3, 0.4, final - 0.1]))
        cells.append(line("centralized", "iid", seed, [0.1, 0.85]))
    return cells


def test_every_goal_has_its_figure_and_verdict(goals: Any, tmp_path: Path):
    cells = goals.read_cells(stored(tmp_path, grid()))
    kept, near, above = goals.goal_rows(cells, "h")
    assert (kept[1][:5], kept[2:]) == ("1.000", ("2", "met"))
    assert (near[1][:6], near[2:]) == ("+0.050", ("2", "missed"))
    assert above[1:] == ("above 1, level with 0, below 0", "8", "met")
    # Ours has fedit's final accuracy after 1 of 4 rounds, everywhere; bytes are the same in every round.
    name = "fft-moe+h to the final accuracy of fedit+h"
    assert goals.cost_row(cells, "fft-moe+h", "fedit+h") == (name, "4 of 4", "0.25", "0.25", "4 of 4")


def test_a_method_that_is_level_is_not_beaten(goals: Any, tmp_path: Path):
    cells = grid()
    for cell in cells:
        if cell["method"] == "fedit" and cell["seed"] == 1:
            cell["accuracy"] += 0.2
    assert goals.goal_rows(goals.read_cells(stored(tmp_path, cells)), "h")[2][1:] == (
        "above 0, level with 1, below 0",
        "8",
        "missed",
    )


def test_a_seed_that_lacks_a_partition_counts_in_no_ratio(goals: Any, tmp_path: Path):
    cells = [c for c in grid() if (c["method"], c["partition"], c["seed"]) != ("fft-moe", "shards:1", 1)]
    assert goals.goal_rows(goals.read_cells(stored(tmp_path, cells)), "h")[0][2] == "1"
    nothing = [c for c in grid() if c["partition"] == "iid"]
    assert goals.goal_rows(goals.read_cells(stored(tmp_path, nothing)), "h")[0][1:] == ("–", "–", "not measured")


def test_an_accuracy_that_is_never_reached_has_no_cost(goals: Any, tmp_path: Path):
    cells = [line("fft-moe", "iid", 0, [0.1, 0.2]), line("fedit", "iid", 0, [0.1, 0.3])]
    row = goals.cost_row(goals.read_cells(stored(tmp_path, cells)), "fft-moe+h", "fedit+h")
    assert row[1:] == ("0 of 1", "–", "–", "0 of 1")


def test_the_command_prints_markdown_and_names_missing_results(
    goals: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    not_run = {k: v for k, v in line("flora", "iid", 0, [0.5]).items() if k not in ("accuracy", "rows")}
    goals.main(["--results", str(stored(tmp_path, [*grid(), {**not_run, "status": "not run", "machine": None}]))])
    out = capsys.readouterr().out
    assert "| fft-moe+h keeps 98% of its IID accuracy" in out
    assert "| fedit+h | 1.000 ±.000 |" in out
    assert "18 of 19 cells" in out
    with pytest.raises(InputError, match=r"there are no results in .*nowhere\.json"):
        goals.main(["--results", str(tmp_path / "nowhere.json")])
