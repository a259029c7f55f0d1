"""Compare all methods on many data sets: `python benchmarks/grid.py --data ../shared/data --models ../shared/models`.

The `compare:` section of every `recipes/grid/<name>.yaml` lists the runs on data set `<name>`. `--scale` chooses the
recipes and further runs. Finished cells are kept under `--work`, and their numbers in `--results`. With either of the
two, the same command continues after a stop; `--seconds` stops it by itself. All data sets run a seed before any runs
the next, so that a grid that stops early still compares everything.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from common import RESULTS, markdown
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import Comparison, each_once, over_grid, retained
from fftmoe.comparison.tables import TextTable, difference_table, tables, with_interval
from fftmoe.config import read_recipe, recipe_folder
from fftmoe.errors import InputError, did_you_mean
from fftmoe.report.metric import NO_VALUE
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import make_grid
from grid_results import GridResults, Piece


@dataclass(frozen=True)
class Scale:
    """Which recipes run, and how much of them.

    Attributes:
        folders: of recipes, below `--recipes`.
        seeds: of each; None leaves them to the recipe.
        partitions: in addition to the recipe's own.
        populations: every data set runs once for each; None is the recipe's own, another number takes all training
            rows, so that many clients still have something to learn from.
    """

    folders: tuple[str, ...]
    seeds: int | None = None
    partitions: tuple[str, ...] = ()
    populations: tuple[int | None, ...] = (None,)


SCALES = {
    "committed": Scale((".",)),
    "final": Scale(("final",)),  # data that no choice has seen
    "full": Scale((".", "full"), seeds=5, partitions=("dirichlet:0.5",), populations=(None, 100)),
}


def pieces_of(scale: Scale, arguments: argparse.Namespace) -> list[Piece]:
    """The data sets with all their cells; every recipe is validated here.

    Raises:
        InputError: `--pieces` names none of them, there is none, or a recipe is wrong.
    """
    files = {
        file.stem: file for folder in scale.folders for file in sorted((arguments.recipes / folder).glob("*.yaml"))
    }
    if not files:
        raise InputError(f"{arguments.recipes} holds no recipe; name another folder with --recipes")
    asked = {
        name if population is None else f"{name}-{population}-clients": (name, population)
        for name in files
        for population in scale.populations
    }
    for piece in arguments.pieces or asked:
        if piece not in asked:
            raise InputError(
                f"--pieces {piece}: no recipe of that name in {arguments.recipes}{did_you_mean(piece, asked)}"
            )
    return [
        _piece(piece, files[name], population, scale, arguments)
        for piece, (name, population) in asked.items()
        if piece in (arguments.pieces or asked)
    ]


def _piece(piece: str, file: Path, population: int | None, scale: Scale, arguments: argparse.Namespace) -> Piece:
    overrides: dict[str, Any] = {**places(file, file.stem, arguments.data, arguments.models)}
    if population is not None:
        overrides |= {"partition.num_clients": population, "data.train_examples": None}
    own = read_recipe(file)[0].get("compare", {}).get("partitions", [])
    partitions = [*own, *scale.partitions] if scale.partitions else None
    cells = make_grid(file, {"seeds": scale.seeds, "partitions": partitions}, overrides=overrides).cells
    return Piece(piece, file, overrides, partitions, arguments.work / piece, cells)


def run_pieces(
    pieces: Sequence[Piece], results: GridResults, workers: int | Literal["auto"], deadline: float | None
) -> dict[str, Comparison]:
    """Run every data set's comparison until the deadline; the results are written after each seed of each."""
    progress = Progress(Console())
    results.restore(progress.say)
    results.write()  # a call that was killed may have left cells in the work folder
    for nth in range(max(len(piece.seeds) for piece in pieces)):
        for piece in pieces:
            if nth < len(piece.seeds):
                seeds = piece.seeds[: nth + 1]  # with those that are done, because a page loses no finished cell
                progress.say(f"{piece.name}, seed {seeds[nth]}")
                how = {"workers": workers, "deadline": deadline, "progress": progress}
                try:
                    compare(piece.file, piece.folder, seeds=seeds, **piece.choices, **how)
                finally:  # when it is interrupted, too
                    results.write()
    # With no time left nothing runs again, failed cells neither: this gathers all seeds.
    return {
        piece.name: compare(piece.file, piece.folder, seeds=piece.seeds, **piece.choices, deadline=time.monotonic())
        for piece in pieces
    }


def places(file: Path, name: str, data: Path | None, models: Path | None) -> dict[str, str]:
    """Return this machine's paths of data and models; what it does not have stays as in the recipe."""
    overrides = {} if data is None else {"data.source": str(data / name)}
    model = Path(read_recipe(file)[0]["backbone"]["model"]).name
    if models is not None and (models / model).is_dir():
        overrides["backbone.model"] = str(models / model)
    return overrides


def joint(comparisons: Mapping[str, Comparison]) -> list[TextTable]:
    """Return, over all data sets, mean accuracies of each grid, kept IID accuracy, and paired differences."""
    cells = [replace(cell, data=name) for name, comparison in comparisons.items() for cell in comparison.cells]
    variants = each_once(cell.variant for cell in cells)
    accuracy, kept = [], []
    for variant in variants:
        own = [over_grid(comparison.cells, variant, "accuracy") for comparison in comparisons.values()]
        accuracy.append((variant, *map(with_interval, own), with_interval(over_grid(cells, variant, "accuracy"))))
        found = [retained(comparison.cells, variant) for comparison in comparisons.values()]
        ratios = [ratio.mean for ratio in found if ratio is not None]
        mean = f"{statistics.fmean(ratios):.3f}" if len(ratios) == len(found) else NO_VALUE
        kept.append((variant, *map(with_interval, found), mean))
    header = ("", *comparisons, "mean")
    return [
        TextTable("Accuracy, mean over the partitions", header, tuple(accuracy)),
        TextTable("Accuracy under skew / IID accuracy", header, tuple(kept)),
        difference_table(cells),
    ]


def show(comparisons: Mapping[str, Comparison]) -> None:
    """Print the joint tables, then those of every data set, as Markdown."""
    for table in joint(comparisons):
        print(f"\n## {table.title}\n\n{markdown(table.header, table.rows)}")
    for name, comparison in comparisons.items():
        for table in tables(comparison):
            print(f"\n### {name}: {table.title}\n\n{markdown(table.header, table.rows)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="committed")
    parser.add_argument("--pieces", nargs="+", help="run only these data sets; default: all")
    parser.add_argument("--data", type=Path, help="folder with trec6/, hwu64/, …; default: the recipes' own sources")
    parser.add_argument("--models", type=Path, help="folder with the recipes' models; default: their own sources")
    parser.add_argument("--recipes", type=Path, default=recipe_folder() / "grid")
    parser.add_argument("--work", type=Path, help="folder of the runs; default runs/grid-<scale>")
    parser.add_argument(
        "--results", type=Path, help="file of the results; default benchmarks/results/grid-<scale>.json"
    )
    parser.add_argument("--seconds", type=float, help="start no cell after this many seconds")
    parser.add_argument("--workers", type=lambda text: text if text == "auto" else int(text), default="auto")
    parsed = parser.parse_args(arguments)
    parsed.work = parsed.work or Path("runs") / f"grid-{parsed.scale}"
    parsed.results = parsed.results or RESULTS / f"grid-{parsed.scale}.json"
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    pieces = pieces_of(SCALES[parsed.scale], parsed)
    results = GridResults(parsed.results, parsed.scale, pieces)
    comparisons = run_pieces(pieces, results, parsed.workers, deadline)
    show(comparisons)
    cells = [cell for comparison in comparisons.values() for cell in comparison.cells]
    print(f"\n{sum(cell.status == 'done' for cell in cells)} of {len(cells)} cells done; numbers in {results.written}")


if __name__ == "__main__":
    main()
