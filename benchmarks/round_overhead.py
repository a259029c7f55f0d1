"""Measure the overhead of a federated round beyond its training: `python benchmarks/round_overhead.py`.

The same small experiment (20 clients a round, one step each, about 100,000 trained parameters, no evaluation) runs
with `fftmoe run`, with a plain loop, in pfl-research and in Flower's simulation. Each runs in its own process, in
turn, several times; ratios are computed within a turn. The two frameworks are installed into --envs, about 2 GB each,
and kept there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import transformers
from torch import Tensor

from common import RESULTS, machine, markdown, write_result
from round_harnesses.environments import HARNESSES, ROOT, NoEnvironment, environment, python_of
from round_harnesses.prepare import Setting, prepare
from round_harnesses.summary import (
    FLOWER,
    OURS,
    PFL,
    PLAIN,
    distance,
    goals_table,
    parts_table,
    problems,
    result,
    rounds_table,
)

MODULES = {OURS: "ours", PLAIN: "plain", PFL: "pfl_research", FLOWER: "flower"}  # of `round_harnesses`
SECONDS = 900  # that one process may take


class Failed(Exception):
    """The process of a harness failed; the message is its last output."""


class Bench:
    """The folder of the task, and the interpreters of the available harnesses."""

    def __init__(self, work: Path, envs: Path, names: Sequence[str]) -> None:
        self.work, self.env = work, environment(work)
        self.pythons: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        for name in names:
            try:
                self.pythons[name] = python_of(name, envs)
            except NoEnvironment as error:
                self.failed[name] = f"not installed: {error}"
                print(f"{name}: {self.failed[name]}", flush=True)

    def call(self, python: Path, module: str, *arguments: str) -> dict[str, Any]:
        """Return the last line of JSON that the module printed.

        Raises:
            Failed: it ended badly, or printed none.
        """
        command = [str(python), "-m", f"round_harnesses.{module}", str(self.work), *arguments]
        try:
            done = subprocess.run(
                command, env=self.env, cwd=self.work, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"took more than {SECONDS} s") from error
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            raise Failed((done.stderr.strip().splitlines() or ["ended without a word"])[-1])
        return json.loads(lines[-1])

    def rounds(self, name: str) -> list[float]:
        """Return the seconds of each round, or nothing after a failure; the final model goes to `final_file`."""
        try:
            seconds = self.call(self.pythons[name], MODULES[name], str(self.final_file(name)))["seconds"]
        except Failed as error:
            self.failed[name] = str(error)
            print(f"{name}: {error}", flush=True)
            return []
        return seconds

    def final_file(self, name: str) -> Path:
        """Return the file of this harness's final model."""
        return self.work / f"final-{MODULES[name]}.safetensors"


def measure(bench: Bench, repetitions: int) -> dict[str, list[list[float]]]:
    """Time every harness in every repetition, with another one first each time."""
    names = list(bench.pythons)
    runs: dict[str, list[list[float]]] = {name: [] for name in names}
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            seconds = bench.rounds(name)
            runs[name].append(seconds)
            if seconds:
                taken = 1e3 * statistics.median(seconds)
                print(f"{repetition + 1}/{repetitions} {name}: {taken:.0f} ms a round", flush=True)
    return runs


def distances(bench: Bench, initial: dict[str, Tensor]) -> dict[str, float]:
    """Return the distance of each harness's final model to ours; nothing if ours did not run."""
    models = {name: bench.final_file(name) for name in bench.pythons if bench.final_file(name).exists()}
    loaded = {name: safetensors.torch.load_file(file) for name, file in models.items()}
    ours = loaded.pop(OURS, None)
    return {} if ours is None else {name: distance(model, ours, initial) for name, model in loaded.items()}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=Setting.rounds, help="rounds of each run; all but two are timed")
    parser.add_argument("--only", nargs="+", choices=list(MODULES), default=list(MODULES))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe of fftmoe run")
    parser.add_argument("--envs", type=Path, default=ROOT / "build" / "benchmark-envs")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "round-overhead")
    parser.add_argument("--results", type=Path, default=RESULTS / "round_overhead.json")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if every harness ran and gave the same model, else 1."""
    parsed = parse(arguments)
    work = parsed.work.resolve()
    os.environ["FFTMOE_CACHE"] = str(work / "cache")
    transformers.logging.disable_progress_bar()
    setting = Setting(rounds=parsed.rounds)
    experiment = prepare(work, setting, parsed.set)
    bench = Bench(work, parsed.envs, parsed.only)
    for file in work.glob("final-*.safetensors"):
        file.unlink()
    load = [os.getloadavg()]
    runs = measure(bench, parsed.repetitions)
    load.append(os.getloadavg())
    apart = distances(bench, experiment.method.init(experiment.model).tensors)
    parts = bench.call(Path(sys.executable), "breakdown")
    found = result(
        runs,
        apart,
        bench.failed,
        parts,
        machine={**machine(), "load_before_and_after": load},
        versions=HARNESSES,
        setting=vars(setting),
        changes=parsed.set,
    )
    write_result(parsed.results, found, "round_seconds")
    for header, rows in (rounds_table(runs, apart, bench.failed), goals_table(runs), parts_table(parts["seconds"])):
        print(f"\n{markdown(header, rows)}")
    if parts["absent"]:
        print(f"\nnot timed, as they are no longer there: {', '.join(parts['absent'])}")
    wrong = problems(apart, bench.failed)
    print("\n" + "\n".join(wrong) if wrong else "\nall did the same fit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
