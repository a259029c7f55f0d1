"""Measure how long the changes of honest clients are: `python benchmarks/update_norms.py --data ../shared`.

The default of `federation.max_update_norm` compares the lengths of a round's changes with their median. This script
runs the shipped recipes, also with whole epochs (so that clients with more rows take more steps), and the methods on
the quickstart, for a few rounds each. For every run it prints the largest ratio of a client's length to the median of
its round (what the default compares), and the largest ratio of a round's median to the median of the five rounds before
it (which is compared where a round has fewer than three answers). `--data` is a folder with `data/` and `models/`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attacks_clients import Wrapped
from common import RESULTS, machine, markdown, write_result
from fftmoe.config import load_recipe
from fftmoe.engines.base import Engine, Fault, Group, Quota, Reply
from fftmoe.records import unpack_plan, unpack_update
from fftmoe.server.lengths import update_length
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.run import run
from fftmoe.store import RunFolder

EPOCHS = ["federation.local_steps=null", "federation.local_epochs=1"]
SHORT = ["trackers=[]", "evaluation={every: 1000, max_examples: 50}"]
SOURCES = {
    "agnews": "ag_news",
    "banking77": "banking77",
    "flan8": "flan8",
    "pacs32": "pacs32",
    "shakespeare": "shakespeare",
}
MODELS = {"flan8": "stories260k", "shakespeare": "stories260k", "pacs32": "vit-cifar10"}
METHODS = ("fedit", "ffa-lora", "fedsa-lora", "hetlora", "flora", "flexlora", "flame", "head-only")
TRAINED = "head={kind: averaged, learning_rate: 1.0}"
TASKS = ("train", "sums")
Lengths = dict[tuple[str, int], dict[int, float]]  # (task, round) -> client -> length


class Measured(Wrapped):
    """The same engine; notes the length of every change."""

    def __init__(self, inner: Engine, lengths: Lengths) -> None:
        super().__init__(inner)
        self._lengths = lengths

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply | Fault]:
        """See `Engine`."""
        plans = {client_id: unpack_plan(message)[0] for group in groups for client_id, message in group}
        for reply in self._inner.run_clients(groups, quota):
            plan = plans[reply.client_id]
            if isinstance(reply, Reply) and plan.task in TASKS:
                own = self._lengths.setdefault((plan.task, plan.round), {})
                own[reply.client_id] = update_length(unpack_update(reply.message), plan.task)
            yield reply


def cells(data: Path | None) -> Iterator[tuple[str, str, list[str]]]:
    """Name, recipe and overrides of every run."""
    for method in METHODS:
        yield f"quickstart, {method}", "quickstart", [f"method={method}", TRAINED]
    for recipe in ("quickstart", "paper", *(SOURCES if data else ())):
        place = [f"data.source={data / 'data' / SOURCES[recipe]}"] if data and recipe in SOURCES else []
        place += [f"backbone.model={data / 'models' / MODELS[recipe]}"] if data and recipe in MODELS else []
        place += ["data.train_examples=4000"] if recipe in ("agnews", "banking77") else []
        yield recipe, recipe, place
        yield f"{recipe}, one epoch", recipe, [*place, *EPOCHS]


def measure(recipe: str, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Run a recipe for a few rounds; the ratios of its lengths."""
    lengths: Lengths = {}

    def opened(experiment: Experiment, folder: RunFolder) -> Engine:
        return Measured(open_engine(experiment, folder), lengths)

    own = load_recipe(recipe, [*SHORT, f"federation.rounds={rounds}", *overrides])
    with tempfile.TemporaryDirectory() as folder:
        run(own, Path(folder) / "run", open_engine=opened)
    of_task = {task: {t: own for (kind, t), own in sorted(lengths.items()) if kind == task} for task in TASKS}
    return {task: ratios(own) for task, own in of_task.items()}


def ratios(rounds: Mapping[int, Mapping[int, float]]) -> dict[str, Any]:
    """The largest ratios within a round and between rounds."""
    medians, within, between = [], [0.0], [0.0]
    for own in rounds.values():
        found = sorted(length for length in own.values() if length > 0)
        if not found:
            continue
        median = statistics.median_low(found)
        within.append(found[-1] / median)
        if medians:
            between.append(median / statistics.median_low(medians[-5:]))
        medians.append(median)
    return {"within": max(within), "between": max(between), "medians": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    file, table = RESULTS / "update_norms.json", []
    found: dict[str, Any] = {}
    for name, recipe, overrides in cells(arguments.data and arguments.data.resolve()):
        found[name] = measure(recipe, overrides, arguments.rounds)
        kinds = [f"{found[name][task][ratio]:.2f}" for task in TASKS for ratio in ("within", "between")]
        table.append([name, *kinds])
        print(table[-1], flush=True)
    write_result(file, {"machine": machine(), "rounds": arguments.rounds, "runs": found}, "runs")
    header = ["run", "client / median of the round", "median / five rounds before", "sums: within", "sums: between"]
    print(markdown(header, table))


if __name__ == "__main__":
    main()
