"""Time evaluation and generation beside other work: `python benchmarks/busy_machine.py`.

The command line lets threads that wait for one another sleep (`OMP_WAIT_POLICY=PASSIVE`). Without that they spin, and
take the processors from the threads they wait for. Each way measures the same rows of the builtin instructions on the
builtin language model, in a process of its own, by the clock: on one thread, on as many as there are cores with threads
that spin, and with threads that sleep; first by itself, then beside as many busy processes as there are cores. The ways
run in turn, several times.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, machine, markdown, write_result
from fftmoe.config import load_recipe
from fftmoe.setup.compose import compose
from fftmoe.setup.federation import make_measure
from fftmoe.trained.generate import generation_metrics
from fftmoe.trained.run import GenerationSample

CORES = os.cpu_count() or 1
MODEL, ROWS, WRITTEN, NEW_TOKENS = "builtin:smollm2", 32, 4, 12
WAYS: Mapping[str, Mapping[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "threads that spin": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "ACTIVE"},
    "threads as the libraries have them": {"OMP_NUM_THREADS": str(CORES)},
    "threads that sleep": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"},
}
BASE = "threads that sleep"
BUSY = "while True: pass"


def measure() -> dict[str, float]:
    """Evaluate and generate once; the seconds of each."""
    asked = (f"backbone.model={MODEL}", f"data.test_examples={ROWS}", "engine.prefix_cache=off")
    experiment = compose(load_recipe("instructions", asked))
    measured = make_measure(experiment)
    sample = GenerationSample(WRITTEN, NEW_TOKENS, 0, experiment.recipe.data.chat_template, 0)
    measured.tally(experiment.test.select(torch.arange(2)))  # the first call also allocates
    start = time.perf_counter()
    measured.tally(experiment.test)
    evaluated = time.perf_counter()
    generation_metrics(experiment.model, MODEL, experiment.test, sample)
    return {"evaluate": evaluated - start, "generate": time.perf_counter() - evaluated}


@contextmanager
def beside(number: int) -> Iterator[None]:
    """So many processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def ask(way: str) -> dict[str, float]:
    """Measure in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | dict(WAYS[way])
    command = [sys.executable, __file__, "--once"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]]) -> str:
    """The seconds of each way as a share of those with threads that sleep, in the same turn."""
    rows: list[tuple[str, ...]] = []
    for (others, ways), kind in itertools.product(found.items(), ("evaluate", "generate")):
        for way, taken in ways.items():
            ratios = sorted(one[kind] / base[kind] for one, base in zip(taken, ways[BASE], strict=True))
            seconds = statistics.median(one[kind] for one in taken)
            shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            rows.append((others, kind, way, f"{seconds:.1f}", shown))
    return markdown(("other processes", "what", "way", "seconds", "times the seconds of threads that sleep"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS / "busy_machine.json")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.once:
        print(json.dumps(measure()))
        return
    found: dict[str, Any] = {str(others): {way: [] for way in WAYS} for others in (0, CORES)}
    for _, others in itertools.product(range(parsed.repetitions), found):
        for way in WAYS:
            with beside(int(others)):
                found[others][way].append(ask(way))
    write_result(parsed.results, {"machine": machine(), "by_others": found}, "by_others")
    print(table(found))


if __name__ == "__main__":
    main()
