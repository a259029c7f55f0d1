"""Choose how much clients train for themselves: `python benchmarks/own_training.py --data ../shared/data`.

Each client of a language model trains its copy of the adapter further from the model that the run keeps, with a
quarter or a half of the steps that it takes in the rounds, and keeps it where rows that it has set aside say so. Beside
this stands the common model. Figures are perplexities on training rows that are set aside for the measurement, and that
chose nothing: their mean over the clients, and the mean of their logarithms. No test row is looked at.
After a stop the same command continues from its work folder, and `--seconds` stops it by itself.
"""

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from common import keep_comparison, markdown, places_of
from defaults import LANGUAGE, values_of
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

PARTS = (0.25, 0.5)
HEADER = (
    "set",
    "own training",
    "common",
    "own part",
    "its mean logarithm",
    "clients with a part",
    "worst client, percent",
)
VARIANTS = tuple(Variant(f"{part:g}", {"federation.own_training": part, "evaluation.baselines": []}) for part in PARTS)


def rows(name: str, cells: Sequence[CellResult]) -> list[list[str]]:
    """A row for each amount of training that has ended."""
    done: dict[str, Mapping[str, Any]] = {str(cell.variant): cell.summary for cell in cells if cell.status == "done"}
    table = []
    for variant, summary in done.items():
        clients, own = summary["clients"], summary["own_data"]
        pairs = zip(clients["personal"], clients[summary["metric"]], strict=True)
        worst = max(personal / common - 1 for personal, common in pairs)
        table.append(
            [
                name,
                variant,
                f"{own['global']['mean']:.2f}",
                f"{own['personal']['mean']:.2f}",
                f"{statistics.fmean(map(math.log, clients['personal'])):.3f}",
                f"{clients['answer'].count('private part')} of {len(clients['answer'])}",
                f"{100 * worst:+.1f}",
            ]
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places_of(parser, LANGUAGE, seeds=1, work="own-training")
    parsed = parser.parse_args(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    table: list[list[str]] = []
    for name in parsed.sets.split(","):
        comparison: Comparison = compare(
            values_of(name, parsed),
            parsed.work / name,
            variants=VARIANTS,
            seeds=parsed.seeds,
            workers="auto",
            deadline=deadline,
            progress=Progress(Console()),
        )
        keep_comparison(parsed.work / name, parsed.results / f"own-training-{name}.json")
        table += rows(name, comparison.cells)
        print(markdown(HEADER, table), flush=True)


if __name__ == "__main__":
    main()
