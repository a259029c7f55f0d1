"""Compare methods out of the box: `python benchmarks/default_table.py --data ../shared/data --models ../shared/models`.

A recipe says what the data is and nothing else, so everything has its default. Clients are those that the data names,
else 20 with Dirichlet 0.1. Every set is cut to 2,400 training rows and 1,000 test rows, so that a run on short texts or
images takes about a minute of a core; language models and long texts take several. The figures are on test rows, which
no default was chosen with. After a stop the same command continues from its work folder, and `--seconds` stops it by
itself.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from common import keep_comparison, markdown, places_of
from fftmoe.comparison.run import compare
from fftmoe.comparison.statistics import CellResult, Comparison, Estimate, estimate
from fftmoe.comparison.tables import with_interval
from fftmoe.report.progress import Progress
from fftmoe.setup.cells import Variant

ROWS = {"train_examples": 2400, "test_examples": 1000}
IMAGES, TEXTS = {"backbone.model": "vit-cifar10"}, {"backbone.model": "stories260k", "backbone.task": "causal-lm"}
DIRICHLET, BY_DOMAIN = {"kind": "dirichlet", "num_clients": 20}, {"kind": "natural", "by": "domain"}
SETS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "trec6": ({}, DIRICHLET),
    "hwu64": ({}, DIRICHLET),
    "banking77": ({}, DIRICHLET),
    "snips": ({}, DIRICHLET),
    "ag_news": ({}, DIRICHLET),
    "pacs32": (IMAGES, BY_DOMAIN),
    "fashion_mnist": (IMAGES, DIRICHLET),
    "flan8": (TEXTS, BY_DOMAIN),
    "shakespeare": (TEXTS, BY_DOMAIN),
}
METHODS = ("fft-moe", "fedit", "hetlora", "centralized")
HEADER = (
    "set",
    "before the first round",
    "FedIT",
    "HetLoRA",
    "**FFT-MoE**",
    "FFT-MoE less FedIT",
    "in one place, last round",
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    places_of(parser, list(SETS), seeds=3, work="default-table")
    return parser.parse_args(arguments)


def values_of(name: str, parsed: argparse.Namespace) -> dict[str, Any]:
    """A recipe that says what this data set is, and how its rows are divided."""
    backbone, partition = SETS[name]
    values: dict[str, Any] = {"name": name, "data": {"source": str(parsed.data / name), **ROWS}, "partition": partition}
    for key, value in backbone.items():
        section, field = key.split(".")
        values.setdefault(section, {})[field] = str(parsed.models / value) if field == "model" else value
    return values


def row(name: str, comparison: Comparison) -> list[str]:
    """The means over the seeds with their 95 % intervals; the difference is of pairs with the same seed."""
    done = {(cell.method, cell.seed): cell for cell in comparison.cells if cell.status == "done"}
    seeds = sorted({seed for _, seed in done})

    def of(method: str, of_model: Callable[[CellResult], float] = kept) -> dict[int, float]:
        return {seed: of_model(done[method, seed]) for seed in seeds if (method, seed) in done}

    ours, fedit = of("fft-moe"), of("fedit")
    first = [before(done["fft-moe", seed]) for seed in ours]
    pairs = [ours[seed] - fedit[seed] for seed in ours if seed in fedit]
    middle = [_shown(list(values.values())) for values in (fedit, of("hetlora"), ours)]
    return [name, _shown(first), *middle, _shown(pairs), _shown(list(of("centralized", after_all_rounds).values()))]


def kept(cell: CellResult) -> float:
    """The metric of the model that the run keeps, by the clients' own rows."""
    return float(cell.summary[cell.metric])


def after_all_rounds(cell: CellResult) -> float:
    """The metric of the last model, kept or not: a bound is not lowered by few rows that did not see a gain."""
    return float(cell.summary.get("last", cell.summary)[cell.metric])


def before(cell: CellResult) -> float:
    """The metric before the first round: of the solved head alone, or of a language model as it came."""
    return next(float(line[cell.metric]) for line in cell.rows if line["round"] == 0)


def _shown(values: Sequence[float]) -> str:
    found: Estimate | None = estimate(values) if values else None
    return with_interval(found) if found else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    deadline = None if parsed.seconds is None else time.monotonic() + parsed.seconds
    rows = []
    for name in parsed.sets.split(","):
        comparison = compare(
            values_of(name, parsed),
            parsed.work / name,
            variants=[Variant(method, {"method": method}) for method in METHODS],
            seeds=parsed.seeds,
            workers="auto",
            deadline=deadline,
            progress=Progress(Console()),
        )
        keep_comparison(parsed.work / name, parsed.results / f"default-table-{name}.json")
        rows.append(row(name, comparison))
        print(markdown(HEADER, rows), flush=True)


if __name__ == "__main__":
    main()
