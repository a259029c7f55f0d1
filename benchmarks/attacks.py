"""Test every robust mean with malicious clients: `python benchmarks/attacks.py --data ../shared/data` (with trec6/).

FFT-MoE runs on TREC-6 with 20 clients that all take part in every round. Four of them are malicious and collude
(`attacks_clients.py` describes them). Each attack is combined with each aggregator, on three partitions, with three
seeds. The head is averaged, so that everything that is measured passes through the aggregator. A few cells use a
closed-form head instead; there the malicious clients also send false feature statistics. `attacks_backdoor.py` has the
back door.

`--validation` measures on held-out training rows. With it, `--only experts` compares the rules for experts with few
contributors, in runs that adapt nothing but experts.

A finished cell is in the results file and does not run again, so the same command continues after a stop. `--seconds`
stops the command by itself. All cells of a seed run before any cell of the next seed.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attacks_backdoor import backdoor_rounds, backdoor_table
from attacks_clients import CRAFTS, Colluding, LyingSums, Poisoned, malicious_clients, with_labels
from common import RESULTS, machine, markdown, mean_and_spread, write_result
from fftmoe.config import Recipe, load_recipe, recipe_folder
from fftmoe.engines.base import Engine
from fftmoe.methods.merge.robust import ROBUST_AGGREGATORS
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.run import run
from fftmoe.store import RunFolder

FRACTION, GOAL = 0.2, 0.05  # malicious; what the worst attack may cost
NONE, PLAIN = "none", "plain"
ATTACKS = (NONE, "sign flip", "scaled", "Gaussian", "ALIE", "IPM", "mimic", "label flip", "NaN")
ON_SUMS = (NONE, "sign flip", "label flip", "lying sums")  # where the head is solved
AGGREGATORS = (PLAIN, *ROBUST_AGGREGATORS)
FROZEN = "norm-bound, few frozen"
PARTITIONS = {
    "iid": ["partition.kind=iid"],
    "dirichlet:0.1": ["partition.kind=dirichlet", "partition.alpha=0.1"],
    "shards:2": ["partition.kind=shards", "partition.shards_per_client=2"],
}
# Small enough for the whole grid: one adapted block, few and short steps. Averaged over rounds, as the comparison does.
COMMON = [
    "adapter.blocks=last-1",
    "federation.clients_per_round=20",
    "federation.rounds=10",
    "federation.local_steps=4",
    "federation.batch_size=8",
    "federation.ema_decay=0.6",
    "evaluation={every: 1000}",
    "engine.workers=1",
    "trackers=[]",
]
AVERAGED = ["head={kind: averaged, learning_rate: 1.0}"]
EXPERTS_ALONE = ["adapter.blocks=last-2", "adapter.shared_rank=0", "adapter.expert_dim=32", "adapter.scale=1.0"]
KINDS_OF_RUN = {
    "averaged": AVERAGED,
    "closed-form": ["federation.learning_rate=2.0e-3", "head.every=10"],
    "backdoor": AVERAGED,
    "experts": [*AVERAGED, *EXPERTS_ALONE, "federation.local_steps=6"],
}


@dataclass(frozen=True)
class Cell:
    """One run; `kind` is one of `KINDS_OF_RUN`."""

    kind: str
    attack: str
    aggregator: str
    partition: str
    seed: int

    @property
    def name(self) -> str:
        """Return the cell's key in the results."""
        return f"{self.kind}, {self.attack}, {self.aggregator}, {self.partition}, seed {self.seed}"


def cells_of(num_seeds: int) -> Iterator[Cell]:
    """Return all cells, one seed after another."""
    for seed in range(num_seeds):
        for partition in PARTITIONS:
            for attack in ATTACKS:
                yield from (Cell("averaged", attack, aggregator, partition, seed) for aggregator in AGGREGATORS)
        for attack in ON_SUMS:
            yield from (Cell("closed-form", attack, own, "dirichlet:0.1", seed) for own in (PLAIN, "norm-bound"))
        for attack in (NONE, "sign flip"):
            yield from (Cell("experts", attack, own, "iid", seed) for own in (PLAIN, "norm-bound", FROZEN))
        yield Cell("backdoor", NONE, PLAIN, "dirichlet:0.1", seed)
        yield from (Cell("backdoor", "trigger", aggregator, "dirichlet:0.1", seed) for aggregator in AGGREGATORS)


def recipe_of(cell: Cell, data: Path, validation: bool) -> Recipe:
    """Return the recipe of a cell."""
    kind, _, few = cell.aggregator.partition(", few ")
    robust = (
        [] if kind == PLAIN else [f"robustness.aggregator={kind}", f"robustness.few_contributors={few or 'bounded'}"]
    )
    held_out = ["data.validation_examples=1000"] if validation else []
    place = [f"data.source={data / 'trec6'}", f"seed={cell.seed}"]
    own = [*KINDS_OF_RUN[cell.kind], *PARTITIONS[cell.partition]]
    overrides = [*COMMON, *own, *robust, *held_out, *place]
    return load_recipe(recipe_folder() / "grid" / "trec6.yaml", overrides)


def measure(cell: Cell, data: Path, validation: bool) -> dict[str, Any]:
    """Run the cell in a separate process on one thread, and return its results."""
    torch.set_num_threads(1)
    start, recipe = time.process_time(), recipe_of(cell, data, validation)
    with tempfile.TemporaryDirectory() as folder:
        if cell.kind == "backdoor":
            fraction = 0.0 if cell.attack == NONE else FRACTION
            figures: dict[str, Any] = {"rounds": backdoor_rounds(recipe, fraction, Path(folder))}
        else:
            summary = run(recipe, Path(folder) / "run", open_engine=partial(open_attacked, cell.attack)).summary
            figures = {"accuracy": summary["accuracy"], "faults": summary["faults"]}
    return {**figures, "cpu_seconds": round(time.process_time() - start, 1)}


def open_attacked(attack: str, experiment: Experiment, folder: RunFolder) -> Engine:
    """The recipe's engine, with malicious clients among its own."""
    engine, seed = open_engine(experiment, folder), experiment.recipe.seed
    malicious = malicious_clients(experiment.num_clients, FRACTION, seed)
    if attack == NONE:
        return engine
    if attack == "lying sums":
        return LyingSums(engine, malicious)
    if attack == "label flip":
        labels = (experiment.train.labels + 1) % len(experiment.label_names)
        flipped = replace(experiment, train=with_labels(experiment.train, labels))
        return Poisoned(engine, open_engine(flipped, folder), malicious)
    return Colluding(engine, CRAFTS[attack], malicious, seed)


class Results:
    """The results of every cell by name in one JSON file, written after each cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}

    def add(self, cell: Cell, figures: Mapping[str, Any]) -> None:
        """Store the results of a cell together with the machine."""
        self.cells[cell.name] = {**figures, "machine": machine()}
        write_result(self.path, {"cells": self.cells}, "cells")


def run_cells(cells: Iterable[Cell], results: Results, parsed: argparse.Namespace) -> None:
    """Run the cells without results, `workers` in parallel, until the time is over."""
    waiting = [cell for cell in cells if cell.name not in results.cells]
    end = time.monotonic() + parsed.seconds
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.workers, mp_context=context) as pool:
        running: dict[Future[dict[str, Any]], Cell] = {}
        while running or (waiting and time.monotonic() < end):
            while waiting and len(running) < parsed.workers and time.monotonic() < end:
                cell = waiting.pop(0)
                running[pool.submit(measure, cell, parsed.data, parsed.validation)] = cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, figures = running.pop(future), future.result()
                results.add(cell, figures)
                found = f"accuracy {figures['accuracy']:.3f}" if "accuracy" in figures else "done"
                print(f"{cell.name}: {found} in {figures['cpu_seconds']:.0f} s", flush=True)


# Tables

Accuracies = Mapping[tuple[str, str, str], list[float]]
"""By (attack, aggregator, partition) one for each seed."""


def accuracies(cells: Iterable[Cell], results: Results, kind: str) -> Accuracies:
    """Return the accuracies of the finished cells of this kind."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in cells:
        if cell.kind == kind and cell.name in results.cells:
            key = (cell.attack, cell.aggregator, cell.partition)
            found.setdefault(key, []).append(results.cells[cell.name]["accuracy"])
    return found


def attack_table(found: Accuracies, attacks: Sequence[str], aggregators: Sequence[str], partition: str) -> str:
    """Return the accuracy of every attack on every aggregator, as mean and deviation over the seeds."""

    def entry(attack: str, aggregator: str) -> str:
        own = found.get((attack, aggregator, partition))
        return mean_and_spread(own) if own else "–"

    rows = [[attack, *(entry(attack, aggregator) for aggregator in aggregators)] for attack in attacks]
    return markdown([partition, *aggregators], rows)


def worst_table(found: Accuracies) -> str:
    """Return, by aggregator and partition, its cost without an attack and the accuracy under the worst attack."""
    rows = []
    for partition in PARTITIONS:
        for aggregator in AGGREGATORS:
            means = {
                attack: statistics.fmean(found[attack, aggregator, partition])
                for attack in ATTACKS
                if (attack, aggregator, partition) in found
            }
            usual = found.get((NONE, PLAIN, partition))
            if usual is None or NONE not in means or len(means) < 2:
                continue
            best, worst = statistics.fmean(usual), min(means, key=lambda attack: means[attack])
            drop = best - means[worst]
            verdict = "met" if drop <= GOAL else "missed"
            cost = f"{best - means[NONE]:+.3f}"
            rows.append(
                [
                    partition,
                    aggregator,
                    f"{means[NONE]:.3f}",
                    cost,
                    f"{means[worst]:.3f} ({worst})",
                    f"{drop:+.3f}",
                    verdict,
                ]
            )
    return markdown(
        ["partition", "aggregator", "no attack", "its cost", "worst attack", "drop", f"at most {GOAL:.2f}"], rows
    )


def show(cells: Sequence[Cell], results: Results) -> None:
    """Print all tables as Markdown."""
    found = accuracies(cells, results, "averaged")
    print("\n### Worst case of every aggregator\n\n" + worst_table(found))
    for partition in PARTITIONS:
        print(f"\n### Accuracy, {partition}\n\n" + attack_table(found, ATTACKS, AGGREGATORS, partition))
    solved = accuracies(cells, results, "closed-form")
    print("\n### Accuracy with a closed-form head\n")
    print(attack_table(solved, ON_SUMS, (PLAIN, "norm-bound"), "dirichlet:0.1"))
    alone = accuracies(cells, results, "experts")
    if alone:
        print("\n### Accuracy where nothing but experts is adapted\n")
        print(attack_table(alone, (NONE, "sign flip"), (PLAIN, "norm-bound", FROZEN), "iid"))
    doors = [
        (f"{cell.aggregator}, {cell.attack}", results.cells[cell.name]["rounds"])
        for cell in cells
        if cell.kind == "backdoor" and cell.name in results.cells
    ]
    print("\n### Back door\n\n" + backdoor_table(doors))
    print(f"\n{sum(cell.name in results.cells for cell in cells)} of {len(cells)} cells; figures in {results.path}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with trec6/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="cells that run in parallel, each on one thread")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after this many seconds")
    parser.add_argument("--only", default="", help="run only cells whose name contains this text")
    parser.add_argument(
        "--validation", action="store_true", help="measure on held-out training rows, into a separate file"
    )
    parser.add_argument("--results", type=Path)
    parsed = parser.parse_args(arguments)
    name = "attacks-validation.json" if parsed.validation else "attacks.json"
    parsed.results = parsed.results or RESULTS / name
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    parsed = parse(arguments)
    results, cells = Results(parsed.results), list(cells_of(parsed.seeds))
    other = "backdoor" if parsed.validation else "experts"  # a back door shows on test rows; a choice is not made there
    cells = [cell for cell in cells if cell.kind != other]
    run_cells([cell for cell in cells if parsed.only in cell.name], results, parsed)
    show(cells, results)


if __name__ == "__main__":
    main()
