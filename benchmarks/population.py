"""Measure the cost of a larger population, with the same cohort and local steps: `python benchmarks/population.py`.

Populations run in turn, several times, each in a new process through `fftmoe.setup.run`. They use the quickstart's
backbone and 200,000 generated short texts. A first run fills the token cache and is not counted. A batch is what a
client of the largest population holds, and there is one tier, so that a round is the same work for every population. A
round's seconds are the median over the rounds, without the first, which builds what all rounds need, and without the
last, which measures the model.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from common import RESULTS, TRAINED_HEAD, machine, markdown, write_result
from fftmoe.config import load_recipe
from fftmoe.report.progress import Progress
from fftmoe.rng import numpy_generator
from fftmoe.setup.run import run

WORDS = "bank book city code door farm game home king lake moon news park rain road ship snow song tree wind".split()
LABELS = ("art", "law", "sea", "war")
MADE = {"train": 200_000, "test": 200}  # texts
COHORT, STEPS, ROUNDS = 20, 2, 8
# Of a run: the name in the results, and how it is shown. Ratios are shown of the first three.
FIGURES = {
    "peak_rss_mib": ("peak memory, MiB", ".0f"),
    "round_seconds": ("a round, s", ".2f"),
    "round_cpu_seconds": ("its CPU time, s", ".2f"),
    "set_up_seconds": ("set-up, s", ".1f"),
    "first_round_seconds": ("first round, s", ".2f"),
    "bytes_down_per_client": ("bytes to a client", ",.0f"),
    "state_bytes_per_client": ("bytes that a client keeps", ",.0f"),
}
NUM_RATIOS = 3


class Clock(Progress):
    """Progress that prints nothing and records when rounds end."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.done: list[tuple[float, float]] = []

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Record wall-clock and CPU seconds."""
        self.done.append((time.perf_counter(), time.process_time()))


def measure(overrides: Sequence[str]) -> dict[str, float]:
    """Run one population, in a process that does nothing else."""
    clock, start = Clock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run(load_recipe("paper", overrides), Path(folder) / "run", clock)
        kept = [file.stat().st_size for file in result.folder.glob("clients/*/*.safetensors")]
    wall, cpu = np.diff(clock.done, axis=0)[:-1].T
    return {
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "round_seconds": float(np.median(wall[1:])),
        "round_cpu_seconds": float(np.median(cpu[1:])),
        "set_up_seconds": clock.done[0][0] - start,
        "first_round_seconds": float(wall[0]),
        "bytes_down_per_client": result.summary["bytes_down"] / (COHORT * ROUNDS),
        "state_bytes_per_client": statistics.mean(kept),
        "clients_with_state": len(kept),
    }


def in_fresh_process(overrides: Sequence[str]) -> dict[str, float]:
    """Call `measure` in a new process, without memory or caches of earlier runs."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, overrides).result()


def overrides_for(texts: Path, population: int, batch_size: int) -> list[str]:
    return [
        TRAINED_HEAD,  # a solved one visits every client
        f"data.source={texts}",
        "data.max_length=16",
        "partition.kind=iid",
        "partition.alpha=null",
        f"partition.num_clients={population}",
        f"partition.min_examples={batch_size}",
        "budgets=[{name: all, fraction: 1.0, top_k: 2, experts: 8}]",
        f"federation.rounds={ROUNDS}",
        f"federation.clients_per_round={COHORT}",
        f"federation.local_steps={STEPS}",
        f"federation.batch_size={batch_size}",
        "engine.workers=1",
        "engine.prefix_cache='off'",
        f"evaluation.every={ROUNDS}",
        "evaluation.local_only=false",
        "trackers=[]",
    ]


def make_texts(folder: Path) -> None:
    """Write texts of six words and a word of the label, as CSV files."""
    folder.mkdir()
    for split, size in MADE.items():
        random = numpy_generator(0, split)
        labels, words = random.integers(len(LABELS), size=size), random.integers(len(WORDS), size=(size, 6))
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for label, row in zip(labels, words, strict=True):
                writer.writerow((" ".join([*(WORDS[word] for word in row), LABELS[label]]), LABELS[label]))


def measure_all(texts: Path, batch_size: int, populations: Sequence[int], repetitions: int) -> list[dict[str, float]]:
    in_fresh_process(overrides_for(texts, populations[0], batch_size))
    runs = []
    for repetition in range(repetitions):
        for population in populations:
            figures = in_fresh_process(overrides_for(texts, population, batch_size))
            runs.append({"clients": population, "repetition": repetition, **figures})
            print(json.dumps(runs[-1]), flush=True)
    return runs


def table(runs: Sequence[Mapping[str, float]], populations: Sequence[int]) -> str:
    """Medians, then ratios to the smallest population within each repetition: their median, least and most."""
    columns = {p: {name: [r[name] for r in runs if r["clients"] == p] for name in FIGURES} for p in populations}
    ratios = list(FIGURES)[:NUM_RATIOS]
    rows = []
    for population, figures in columns.items():
        row = [f"{population:,}"]
        row += [f"{statistics.median(figures[name]):{form}}" for name, (_, form) in FIGURES.items()]
        for name in ratios:
            base = columns[populations[0]][name]
            of = [mine / theirs for mine, theirs in zip(figures[name], base, strict=True)]
            row.append(f"{statistics.median(of):.2f} ({min(of):.2f} to {max(of):.2f})")
        rows.append(row)
    return markdown(
        ["clients", *(head for head, _ in FIGURES.values()), *(f"× {FIGURES[n][0].split(',')[0]}" for n in ratios)],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--populations", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "population.json")
    arguments = parser.parse_args()
    populations = sorted(arguments.populations)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FFTMOE_CACHE"] = str(Path(folder) / "cache")  # which the processes inherit
        texts = Path(folder) / "texts"
        make_texts(texts)
        batch_size = MADE["train"] // populations[-1]
        runs = measure_all(texts, batch_size, populations, arguments.repetitions)
    settings = {"texts": MADE, "cohort": COHORT, "steps": STEPS, "rounds": ROUNDS, "batch_size": batch_size}
    result = {"machine": machine(), "settings": settings, "runs": runs}
    write_result(arguments.results, result, "runs")
    print(table(runs, populations))


if __name__ == "__main__":
    main()
