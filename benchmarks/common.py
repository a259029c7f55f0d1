"""Helpers of all benchmarks: the machine and commit of each measurement, and runs that resume where they stopped."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fftmoe.config import load_recipe, recipe_folder
from fftmoe.setup.run import run

RESULTS = Path(__file__).parent / "results"

# Speed, bytes and the parts of the method are measured with the paper's own kind of head, which clients train and the
# server averages; the quickstart's is solved.
TRAINED_HEAD = "head={kind: one-vs-all, learning_rate: 1.0}"


def machine() -> dict[str, Any]:
    """Describe the machine and the commit of a measurement."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def places_of(parser: argparse.ArgumentParser, sets: Sequence[str], seeds: int, work: str) -> None:
    """Add what every comparison over data sets is told: where data is, what is run, and where results go."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    parser.add_argument("--models", type=Path, help="folder with vit-cifar10 and stories260k, for images and text")
    parser.add_argument("--sets", default=",".join(sets), help="data sets, separated by commas")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--work", type=Path, default=Path("runs") / work, help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, help="start no cell after this many seconds")


def as_measured(name: str) -> Path:
    """The recipe of this name with which the tables of the documentation were measured."""
    return recipe_folder() / "measured" / f"{name}.yaml"


class Results:
    """Summaries by name in one JSON file, written after every run, so that a stopped grid can resume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Any] = json.loads(path.read_text())["runs"] if path.exists() else {}

    def run(self, name: str, recipe: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the summary of this run, from the file or by running it."""
        if name not in self.runs:
            with tempfile.TemporaryDirectory() as folder:
                summary = run(load_recipe(recipe, overrides), Path(folder) / "run").summary
            self.runs[name] = {
                "recipe": Path(recipe).name,  # where it lies is this machine's business
                "overrides": list(overrides),
                "machine": machine(),
                "summary": summary,
            }
            write_result(self.path, {"runs": self.runs}, "runs")
            metric = summary["metric"]
            print(f"{name}: {metric} {summary[metric]:.3f} in {summary['seconds']:.0f} s", flush=True)
        return self.runs[name]["summary"]


def write_result(file: Path, found: Mapping[str, Any], part: str) -> None:
    """Write what was found, unless the file has more of what was measured, which is under `part`.

    Of cells those count that are done. What is less than the file has is written beside it, and the script ends.
    """
    number = _number_done(found[part])
    if not number:
        raise SystemExit(f"found no {part}: {file} is not written")
    text = json.dumps(found, indent=1) + "\n"
    known = _number_done(json.loads(file.read_text()).get(part, [])) if file.exists() else 0
    file.parent.mkdir(exist_ok=True)
    if number < known:
        beside(file).write_text(text)
        raise SystemExit(
            f"{file} has {known} {part} and stays as it is; the {number} that were found are in {beside(file)}"
        )
    file.write_text(text)


def beside(file: Path) -> Path:
    """Where that is written which is less than this file of results has."""
    return file.with_suffix(".found.json")


def _number_done(measured: Mapping[str, Any] | Sequence[Any]) -> int:
    each = measured.values() if isinstance(measured, Mapping) else measured
    return sum(not isinstance(one, Mapping) or one.get("status", "done") == "done" for one in each)


def keep_comparison(folder: Path, file: Path) -> None:
    """Copy the results of `fftmoe.comparison.run` from this folder, together with the machine."""
    found = json.loads((folder / "comparison.json").read_text())
    write_result(file, {"machine": machine(), **found}, "cells")


def mean_and_spread(values: Sequence[float]) -> str:
    """`mean ± standard deviation` of runs that differ only in the seed; a single run has no spread."""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def column(summaries: Sequence[Mapping[str, Any]], *path: str) -> list[float]:
    """Return one number from each summary."""
    values = []
    for summary in summaries:
        node: Any = summary
        for key in path:
            node = node[key]
        values.append(float(node))
    return values
