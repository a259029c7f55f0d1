"""Whole comparisons on the tiny backbone: what they leave, what they resume, and how they fail."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from comparisons import assert_refused, with_grid
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import Comparison
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant
from reports import structure_of
from shared_fixtures import Cli, Outcome


@pytest.fixture(scope="module")
def grid_values(recipe_values: dict[str, Any]) -> dict[str, Any]:
    return with_grid(recipe_values)


@pytest.fixture(scope="module")
def grid_file(grid_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "grid.yaml"
    path.write_text(yaml.safe_dump(grid_values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(cli: Cli, grid_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A comparison that the tests of this file share, run in this process."""
    folder = tmp_path_factory.mktemp("comparison") / "out"
    outcome = cli("compare", grid_file, "--output", folder, "--workers", 1, "--target", 0.2)
    assert outcome.status == 0, outcome.err
    return folder, outcome


def cells_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "comparison.json").read_text())["cells"]


def accuracies(folder: Path) -> dict[tuple[str, str, int], float]:
    return {(c["variant"], c["partition"], c["seed"]): c["summary"]["accuracy"] for c in cells_of(folder)}


def test_a_comparison_holds_every_cell(finished: tuple[Path, Outcome]):
    folder, _ = finished
    cells = cells_of(folder)
    assert [cell["status"] for cell in cells] == ["done"] * 8
    assert {(c["method"], c["head"]) for c in cells} == {("fft-moe", "averaged"), ("fft-moe", "one-vs-all")}
    for cell in cells:
        assert [row["round"] for row in cell["rows"]] == [0, 1, 2]
        assert cell["rows"][-1]["accuracy"] == cell["summary"]["accuracy"]
    left = sorted(path.name for path in (folder / "cells" / "iid" / "fft-moe+averaged" / "seed-0").iterdir())
    assert left == [
        "bindings.json",
        "config.yaml",
        "metrics.jsonl",
        "report-figures.csv",
        "report.html",
        "summary.json",
    ]


def test_a_comparison_has_statistics_of_its_cells(finished: tuple[Path, Outcome]):
    folder, _ = finished
    values = json.loads((folder / "comparison.json").read_text())
    row = values["variants"]["fft-moe+averaged"]
    mine = [
        a
        for (variant, partition, _), a in accuracies(folder).items()
        if (variant, partition) == ("fft-moe+averaged", "iid")
    ]
    assert row["by_partition"]["iid"]["mean"] == pytest.approx(sum(mine) / 2)
    assert row["to_target"]["iid"]["target"] == 0.2
    assert row["iid_retained"]["n"] == 2


def test_clients_and_cohorts_are_equal_across_variants(finished: tuple[Path, Outcome]):
    """In round 1 the variants of one cell send equally many bytes down, so they asked the same clients."""
    folder, _ = finished
    sent = {}
    for cell in cells_of(folder):
        sent.setdefault((cell["partition"], cell["seed"]), set()).add(cell["rows"][1]["bytes_down"])
    assert all(len(sizes) == 1 for sizes in sent.values())


def test_the_outcome_is_printed_and_drawn(finished: tuple[Path, Outcome]):
    folder, outcome = finished
    for words in (
        "8 cells (2 variants × 2 partitions × 2 seeds)",
        "[8/8, ",
        "IID kept",
        "target accuracy: 0.2; reached",
    ):
        assert words in outcome.out
    assert re.search(r"fft-moe\+one-vs-all +0\.\d{3} ±\d?\.\d{3}", outcome.out)
    page = (folder / "comparison.html").read_text()
    structure_of(page)  # loads nothing from elsewhere
    assert page.count("<figure") == 4


def test_a_finished_comparison_runs_only_the_missing_cell(finished: tuple[Path, Outcome], cli: Cli, grid_file: Path):
    folder, _ = finished
    before = accuracies(folder)
    summaries = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    gone = folder / "cells" / "shards-1" / "fft-moe+averaged" / "seed-1" / "summary.json"
    gone.unlink()  # as a run that was cut off
    outcome = cli("compare", grid_file, "--output", folder, "--workers", 1, "--target", 0.2)
    assert outcome.status == 0, outcome.err
    assert "7 of them finished already" in outcome.out
    assert [line for line in outcome.out.splitlines() if line.startswith("[")] == [
        line for line in outcome.out.splitlines() if line.startswith("[1/1, ")
    ]
    changed = {path for path, time in summaries.items() if path.stat().st_mtime_ns != time}
    assert changed == {gone}
    assert accuracies(folder) == before


@pytest.mark.slow
def test_two_worker_processes_give_the_same_figures(finished: tuple[Path, Outcome], grid_file: Path, tmp_path: Path):
    compare(grid_file, tmp_path / "out", seeds=1, workers=2)
    first = {key: accuracy for key, accuracy in accuracies(finished[0]).items() if key[2] == 0}
    assert accuracies(tmp_path / "out") == first


def test_another_recipe_needs_another_folder(finished: tuple[Path, Outcome], cli: Cli, grid_file: Path):
    folder, _ = finished
    outcome = cli("compare", grid_file, "--output", folder, "--set", "budgets.large.top_k=1")
    assert_refused(outcome, "fft-moe+averaged, iid, seed 0", "budgets.1.top_k=2", "this comparison has 1", "--output")


def test_a_folder_with_other_content_is_not_changed(cli: Cli, grid_file: Path, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("mine")
    assert_refused(cli("compare", grid_file, "--output", tmp_path), "another run", "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture(scope="module")
def short(recipe_values: dict[str, Any]) -> Callable[..., Comparison]:
    """One round on one partition: a plain variant, and one with the learning rate that is given."""
    values = {**recipe_values, "federation": {**recipe_values["federation"], "rounds": 1}}

    def call(output: Path, rate: float = 1e30, **more: Any) -> Comparison:
        variants = [
            Variant("wild", {"federation.learning_rate": rate}),
            Variant("plain", {"federation.aggregation": "fedavg"}),
        ]
        return compare(values, output, variants=variants, seeds=1, **more)

    return call


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_failed_cell_stops_no_other_and_is_repeated(short: Callable, tmp_path: Path, workers: int):
    folder = tmp_path / "out"
    first = short(folder, workers=workers)
    assert [(cell.variant, cell.status) for cell in first.cells] == [("wild", "failed"), ("plain", "done")]
    assert "the loss became" in first.cells[0].reason
    assert (folder / "cells" / "dirichlet-1.0" / "wild" / "seed-0" / "failed.txt").read_text().strip() == first.cells[
        0
    ].reason
    again = short(folder, rate=0.01, workers=1)
    assert [cell.status for cell in again.cells] == ["done", "done"]
    assert not list(folder.rglob("failed.txt"))
    assert again.failed == ()


def test_a_failed_cell_ends_the_command_with_1(cli: Cli, recipe_values: dict[str, Any], tmp_path: Path):
    section = {"seeds": 1, "heads": ["averaged", "one-vs-all"]}
    section["overrides"] = {"fft-moe+averaged": {"federation.learning_rate": 1e30}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**recipe_values, "compare": section}))
    outcome = cli("compare", tmp_path / "r.yaml", "--output", tmp_path / "out", "--workers", 1)
    assert outcome.status == 1
    assert outcome.err == "fftmoe: 1 of 2 cells failed, for the reasons above; to try them again, repeat the command\n"
    assert re.search(r"fft-moe\+averaged +failed", outcome.out)
    assert re.search(r"fft-moe\+one-vs-all +0\.\d{3}", outcome.out)
    assert "failed: fft-moe+averaged, dirichlet:1.0, seed 0: client" in outcome.out
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_no_cell_starts_after_the_deadline(short: Callable, tmp_path: Path):
    for workers in (1, 2):
        late = short(tmp_path / str(workers), deadline=time.monotonic(), workers=workers)
        assert [cell.status for cell in late.cells] == ["not run", "not run"]
    assert short(tmp_path / "1", rate=0.01, keep=True).failed == ()
    kept = {path.name for path in (tmp_path / "1" / "cells" / "dirichlet-1.0" / "plain" / "seed-0").iterdir()}
    assert {"adapter", "checkpoints", "clients"} <= kept


def test_a_comparison_says_that_centralized_runs_once(recipe_values: dict[str, Any], tmp_path: Path):
    said = io.StringIO()
    progress = Progress(Console(file=said, width=500))
    rows = {"methods": ["fft-moe", "centralized"], "partitions": ["shards:1", "iid"], "seeds": 1}
    compare(recipe_values, tmp_path / "out", **rows, deadline=time.monotonic(), progress=progress)
    assert said.getvalue() == "3 cells (2 variants × 2 partitions × 1 seed; centralized on one partition)\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_comparison_ends_with_130_and_keeps_what_is_finished(
    grid_file: Path, tmp_path: Path, workers: int
):
    main = "import signal, fftmoe.cli.app as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    flags = ["--workers", str(workers), "--output", str(tmp_path / "out"), "--seeds", "9"]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", main, "compare", str(grid_file), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/36"):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.startswith("fftmoe: interrupted")
    assert "to continue, repeat the command" in err
    assert err.count("\n") == 1, err  # no warning of leaked semaphores
    assert len(list((tmp_path / "out").rglob("summary.json"))) >= 1
    assert not (tmp_path / "out" / "comparison.json").exists()
