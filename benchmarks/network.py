"""Measure a round's time beyond its training, locally and over Flower: `python benchmarks/network.py [--rounds 12]`.

The same run has four sites with the same training, to the last byte. It runs in this process, in Flower's simulation,
and deployed: a server and four site processes on this machine's loopback over TLS with registered keys. The time
beyond training is the time of a round minus the clients' own seconds, divided among those that train in parallel.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from common import RESULTS, machine, markdown, write_result
from fftmoe.config import parse_recipe
from fftmoe.data.stdlib_docs import stdlib_docs
from fftmoe.deploy import server as server_module
from fftmoe.report.progress import Progress
from fftmoe.setup.run import run

NAMES = ("site-a", "site-b", "site-c", "site-d")
EACH, TESTED = 160, 100  # examples of a site, and of the test set
PARTS = ("push", "pull", "wait")


def divide(folder: Path) -> None:
    """`folder/all` has everyone's rows and who holds each, `folder/<site>` a site's own, `folder/server` the test's."""
    rows = {split: examples(split) for split in ("train", "test")}
    own = {name: rows["train"][place :: len(NAMES)][:EACH] for place, name in enumerate(NAMES)}
    for name, part in own.items():
        write(folder / name / "train.csv", ("text", "label"), part)
    held = [(*row, name) for name, part in own.items() for row in part]
    write(folder / "all" / "train.csv", ("text", "label", "site"), held)
    for place in ("all", "server"):
        write(folder / place / "test.csv", ("text", "label"), rows["test"][:TESTED])


def examples(split: str) -> list[tuple[str, str]]:
    """Return texts with the names of their labels."""
    return [(text, label) for text, label, _ in stdlib_docs()[split]]


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def recipe(folder: Path, rounds: int) -> dict[str, Any]:
    """Return a recipe with all clients in every round, two steps each, measured once at the end."""
    labels = sorted({label for _, label in examples("train")})
    return {
        "backbone": {"model": "builtin:minilm"},
        "data": {"source": str(folder / "all"), "max_length": 64, "labels": labels, "validation": "off"},
        "partition": {"kind": "natural", "by": "site"},
        "adapter": {"num_experts": 16, "expert_dim": 16, "shared_rank": 0, "scale": 1.0, "blocks": "last-2"},
        "head": {"kind": "averaged", "learning_rate": 1.0},
        "budgets": [{"name": "all", "fraction": 1.0, "top_k": 2, "experts": 8}],
        "federation": {
            "rounds": rounds,
            "clients_per_round": 4,
            "local_steps": 2,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "aggregation": "per-expert",
            "server_optimizer": "sgd",
        },
        "evaluation": {"every": rounds},
        "trackers": [],
    }


def here(values: dict[str, Any], output: Path, folder: Path) -> dict[str, list[float]]:
    run(parse_recipe(values, "benchmark"), output)
    return {}


def simulated(values: dict[str, Any], output: Path, folder: Path) -> dict[str, list[float]]:
    run(parse_recipe({**values, "engine": {"kind": "flower", "workers": 2}}, "benchmark"), output)
    return {}


def deployed(values: dict[str, Any], output: Path, folder: Path) -> dict[str, list[float]]:
    """Returns the seconds of each part of the server's exchanges, by round."""
    with create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    deployment = folder / "deployment"
    command("init", deployment, "--sites", ",".join(NAMES), "--address", address).wait()
    values = {**values, "data": {**values["data"], "source": str(folder / "server")}}
    (folder / "recipe.yaml").write_text(json.dumps(values))  # JSON is YAML
    with ExitStack() as stack, timed_grid() as parts:
        for name in NAMES:
            place = deployment / "sites" / name
            command("site", "review", folder / "recipe.yaml", "--site", place, "--yes").wait()
            site = command("client", deployment / "sites" / name, "--data", folder / name, "--budget", "all")
            stack.callback(site.wait)
            stack.callback(site.terminate)
        recipe = parse_recipe(values, "benchmark")
        server_module.run_server(deployment / "server", recipe, output, 600.0, Progress.silent())
    return parts


def command(*arguments: object) -> "subprocess.Popen[bytes]":
    program = [sys.executable, "-c", "import fftmoe.cli.app as c; c.main()", "deploy", *map(str, arguments)]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


@contextmanager
def timed_grid() -> Iterator[dict[str, list[float]]]:
    """Time the grid that the server opens: sending messages, fetching answers, and waiting in between."""
    parts: dict[str, list[float]] = defaultdict(list)
    original = server_module.open_grid

    @contextmanager
    def opened(*arguments: Any) -> Iterator[Any]:
        with original(*arguments) as (grid, nodes):
            grid.push_messages = timed(grid.push_messages, parts["push"])
            grid.pull_messages = timed(grid.pull_messages, parts["pull"])
            yield grid, nodes

    server_module.open_grid = opened  # type: ignore[assignment]
    try:
        yield parts
    finally:
        server_module.open_grid = original


def timed(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds.append(time.perf_counter() - started)

    return wrapped


SIDE_BY_SIDE = {"here": 1, "simulation": 2, "deployment": 4}
ENGINES = {"here": here, "simulation": simulated, "deployment": deployed}


def rounds_of(output: Path, side_by_side: int) -> list[tuple[float, float]]:
    """Return, for each round but the first, the total seconds and those beyond training."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    found = []
    for before, row in list(itertools.pairwise(rows))[1:-1]:  # the last one also measures
        whole = row["seconds"] - before["seconds"]
        found.append((whole, whole - (row["client_seconds"] - before["client_seconds"]) / side_by_side))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    results: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        divide(folder)
        values = recipe(folder, rounds)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
        for engine, start in ENGINES.items():
            output = folder / f"run-{engine}"
            parts = start(values, output, folder)
            adapter = (output / "adapter" / "adapter_model.safetensors").read_bytes()
            times = rounds_of(output, SIDE_BY_SIDE[engine])
            results[engine] = {
                "sha256": hashlib.sha256(adapter).hexdigest(),
                "round_seconds": [whole for whole, _ in times],
                "beyond_training_seconds": [beyond for _, beyond in times],
                "grid_calls_seconds": parts,
            }
    assert len({result["sha256"] for result in results.values()}) == 1, "the engines' results differ"
    write_result(RESULTS / "network.json", {"machine": machine(), "engines": results}, "engines")
    print(table(results))
    calls = results["deployment"]["grid_calls_seconds"]
    print(f"\ndeployment, s a round: {', '.join(f'{p} {sum(s) / rounds:.3f}' for p, s in calls.items())}")


def table(results: dict[str, Any]) -> str:
    rows = []
    for engine, result in results.items():
        beyond = sorted(result["beyond_training_seconds"])
        rows.append(
            (
                engine,
                f"{statistics.median(result['round_seconds']):.2f}",
                f"{statistics.median(beyond):.2f} ({beyond[0]:.2f} to {beyond[-1]:.2f})",
            )
        )
    return markdown(("engine", "a round, s", "beyond training, s"), rows)


if __name__ == "__main__":
    main()
