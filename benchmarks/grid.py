"""All methods on several data sets: `python benchmarks/grid.py --data ../shared/data --models ../shared/models`.

Every `recipes/grid/<name>.yaml` says in its `compare:` section what runs on data set `<name>`. Cells that have finished
are kept under `--work`, so the same command goes on after a stop, and `--seconds` makes it stop by itself. All data
sets run a seed before any runs the next, so that a grid that stops early still compares everything.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from common import RESULTS, machine, markdown
from fftmoe.config import recipe_folder
from fftmoe.errors import InputError, did_you_mean
from fftmoe.experiment import compare
from fftmoe.experiment.cells import make_grid, read_recipe
from fftmoe.report.comparison import CellResult, Comparison, distinct, over_grid, retained
from fftmoe.report.comparison_tables import NOTHING, Table, difference_table, tables, with_interval
from fftmoe.report.progress import Progress

# Seeds of each data set; None leaves them to the recipe.
SEEDS = {"committed": None, "full": 5}
KEPT = (
    "accuracy",
    "accuracy_by_round",
    "client_accuracy",
    "personal_accuracy",
    "bytes_up",
    "bytes_down",
    "client_seconds",
    "seconds",
    "trainable_parameters",
)


def run_pieces(
    pieces: Mapping[str, Path], arguments: argparse.Namespace, deadline: float | None
) -> dict[str, Comparison]:
    """Every data set's comparison, as far as the deadline allowed."""
    progress = Progress(Console())
    shared = {"workers": arguments.workers, "progress": progress}
    overrides = {name: places(file, name, arguments.data, arguments.models) for name, file in pieces.items()}
    flags = {"seeds": SEEDS[arguments.scale]}
    seeds = {
        name: distinct(cell.seed for cell in make_grid(file, flags, overrides=overrides[name]).cells)
        for name, file in pieces.items()
    }
    for nth in range(max(map(len, seeds.values()))):
        for name, file in pieces.items():
            if nth < len(seeds[name]):
                progress.say(f"{name}, seed {seeds[name][nth]}")
                only = {"seeds": seeds[name][nth : nth + 1], "overrides": overrides[name]}
                compare(file, arguments.work / name, **only, **shared, deadline=deadline)
    # With no time left nothing runs again, failed cells neither: this gathers all seeds.
    return {
        name: compare(
            file, arguments.work / name, seeds=seeds[name], overrides=overrides[name], deadline=time.monotonic()
        )
        for name, file in pieces.items()
    }


def places(file: Path, name: str, data: Path | None, models: Path | None) -> dict[str, str]:
    """Where this machine holds what the recipe names; what it does not hold stays as the recipe says."""
    overrides = {} if data is None else {"data.source": str(data / name)}
    model = Path(read_recipe(file)[0]["backbone"]["model"]).name
    if models is not None and (models / model).is_dir():
        overrides["backbone.model"] = str(models / model)
    return overrides


def joint(comparisons: Mapping[str, Comparison]) -> list[Table]:
    """Over all data sets: mean accuracy over each grid, what is kept of IID accuracy, and paired differences."""
    cells = [replace(cell, data=name) for name, comparison in comparisons.items() for cell in comparison.cells]
    variants = distinct(cell.variant for cell in cells)
    accuracy, kept = [], []
    for variant in variants:
        own = [over_grid(comparison.cells, variant, "accuracy") for comparison in comparisons.values()]
        accuracy.append((variant, *map(with_interval, own), with_interval(over_grid(cells, variant, "accuracy"))))
        found = [retained(comparison.cells, variant) for comparison in comparisons.values()]
        ratios = [ratio.mean for ratio in found if ratio is not None]
        mean = f"{statistics.fmean(ratios):.3f}" if len(ratios) == len(found) else NOTHING
        kept.append((variant, *map(with_interval, found), mean))
    header = ("", *comparisons, "mean")
    return [
        Table("Accuracy, mean over the partitions", header, tuple(accuracy)),
        Table("Accuracy under skew / IID accuracy", header, tuple(kept)),
        difference_table(cells),
    ]


def show(comparisons: Mapping[str, Comparison]) -> None:
    """The joint tables, then those of every data set, as Markdown."""
    for table in joint(comparisons):
        print(f"\n## {table.title}\n\n{markdown(table.header, table.rows)}")
    for name, comparison in comparisons.items():
        for table in tables(comparison):
            print(f"\n### {name}: {table.title}\n\n{markdown(table.header, table.rows)}")


def numbers_of(cell: CellResult, name: str) -> dict[str, Any]:
    """What is committed of a cell."""
    coordinates = {key: getattr(cell, key) for key in ("variant", "method", "head", "partition", "seed", "status")}
    return {"data": name, **coordinates, **{key: cell.summary[key] for key in KEPT if key in cell.summary}}


def write(path: Path, scale: str, comparisons: Mapping[str, Comparison]) -> None:
    """A line for every cell."""
    cells = [numbers_of(cell, name) for name, comparison in comparisons.items() for cell in comparison.cells]
    lines = ",\n".join(json.dumps(cell, allow_nan=False) for cell in cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"scale": "{scale}", "machine": {json.dumps(machine())}, "cells": [\n{lines}\n]}}\n')


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SEEDS, default="committed")
    parser.add_argument("--pieces", nargs="+", help="some of the data sets; default: all")
    parser.add_argument("--data", type=Path, help="a folder that holds trec6/, hwu64/, …; default: the recipes' own")
    parser.add_argument("--models", type=Path, help="a folder that holds the recipes' models; default: their own")
    parser.add_argument("--recipes", type=Path, default=recipe_folder() / "grid")
    parser.add_argument("--work", type=Path, help="where runs are kept; default runs/grid-<scale>")
    parser.add_argument("--results", type=Path, help="default benchmarks/results/grid-<scale>.json")
    parser.add_argument("--seconds", type=float, help="start no cell later than this")
    parser.add_argument("--workers", type=lambda text: text if text == "auto" else int(text), default="auto")
    parsed = parser.parse_args(arguments)
    parsed.work = parsed.work or Path("runs") / f"grid-{parsed.scale}"
    parsed.results = parsed.results or RESULTS / f"grid-{parsed.scale}.json"
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    files = {file.stem: file for file in sorted(parsed.recipes.glob("*.yaml"))}
    for name in parsed.pieces or files:
        if name not in files:
            raise InputError(f"--pieces {name}: no recipe of that name in {parsed.recipes}{did_you_mean(name, files)}")
    if not files:
        raise InputError(f"{parsed.recipes} holds no recipe; name another folder with --recipes")
    comparisons = run_pieces({name: files[name] for name in parsed.pieces or files}, parsed, deadline)
    show(comparisons)
    write(parsed.results, parsed.scale, comparisons)
    cells = [cell for comparison in comparisons.values() for cell in comparison.cells]
    print(f"\n{sum(cell.status == 'done' for cell in cells)} of {len(cells)} cells done; numbers in {parsed.results}")


if __name__ == "__main__":
    main()
