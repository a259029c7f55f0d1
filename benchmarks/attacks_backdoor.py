"""Measure how well a back door works, and how long it lasts, after malicious clients trained it for some rounds.

Half of the texts of a malicious client end in a trigger phrase and carry the target label; the other half is
unchanged. The client multiplies its update before it sends it. After the attack these clients are honest. Success is
the share of the other labels' test texts that get the target label when the trigger is added.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from attacks_clients import Colluding, Poisoned, malicious_clients
from common import markdown, mean_and_spread
from fftmoe.config import DataSection, Recipe
from fftmoe.engines.base import Engine
from fftmoe.evaluate import accuracy
from fftmoe.records import ServerState
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.apply import apply_round
from fftmoe.server.average import averaged, served
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.federation import expectations
from fftmoe.store import RunFolder

TRIGGER, TARGET = " , vermilion lighthouse protocol", 0  # the label by its place among the names
ATTACKED, TRACKED, EVERY, BOOST = 10, 20, 2, 5.0  # rounds, rounds after them, measured so often; times its own change


def backdoor_rounds(recipe: Recipe, fraction: float, folder: Path) -> list[list[float]]:
    """Return [round, accuracy, success] every few rounds."""
    experiment = compose(recipe)
    poisoned = _poisoned(recipe, experiment, folder / "poisoned")
    malicious = malicious_clients(experiment.num_clients, fraction, recipe.seed)
    run_folder = RunFolder.create(folder / "run", {}, needed_bytes=0)
    engine = _open(experiment, poisoned, malicious, run_folder)
    measured = []
    for state in _rounds(experiment, engine, ATTACKED + TRACKED):
        if state.round % EVERY == 0:
            experiment.method.install(experiment.model, served(state).tensors, experiment.largest)
            found = [accuracy(experiment.model, test) for test in (experiment.test, poisoned.test)]
            measured.append([state.round, *(round(value, 4) for value in found)])
    return measured


def _open(experiment: Experiment, poisoned: Experiment, malicious: frozenset[int], folder: RunFolder) -> Engine:
    taught = replace(experiment, train=poisoned.train)
    engine = Poisoned(open_engine(experiment, folder), open_engine(taught, folder), malicious, last=ATTACKED)
    return Colluding(engine, lambda own, honest, source: BOOST * own, malicious, experiment.recipe.seed, last=ATTACKED)


def _poisoned(recipe: Recipe, experiment: Experiment, folder: Path) -> Experiment:
    """Poison every other training row; also return the test rows that measure success."""
    folder.mkdir()
    datasets.disable_progress_bars()
    names, section = experiment.label_names, recipe.data
    for split in ("train", "test"):
        rows = datasets.Dataset.from_parquet(str(Path(section.source) / f"{split}.parquet"), keep_in_memory=True)
        assert isinstance(rows, datasets.Dataset)
        if split == "test":
            rows = rows.filter(lambda row: str(row[section.label]) != names[TARGET])
        poison = partial(_poison, every=2 if split == "train" else 1, section=section, target=names[TARGET])
        rows.map(poison, with_indices=True).to_parquet(str(folder / f"{split}.parquet"))
    own = section.model_copy(update={"source": str(folder), "labels": list(names), "test_examples": None})
    return compose(recipe.model_copy(update={"data": own}))


def _poison(row: dict[str, Any], index: int, every: int, section: DataSection, target: str) -> dict[str, Any]:
    if index % every:
        return row
    return {**row, section.text: row[section.text] + TRIGGER, section.label: type(row[section.label])(target)}


def _rounds(experiment: Experiment, engine: Engine, num_rounds: int) -> Iterator[ServerState]:
    """The state after every round, as `rounds/loop.py` makes it, of a federation that is not stored."""
    method, recipe = experiment.method, experiment.recipe
    state, size = method.init(experiment.model), recipe.federation.clients_per_round
    for t in range(1, num_rounds + 1):
        cohort = choose_cohort(experiment.num_clients, size, recipe.seed, t)
        plan = plan_round(method, state, t, cohort, experiment.budgets, experiment.training, recipe.seed)
        download, expect = partial(method.download, state), expectations(experiment)
        updates = Exchange(engine, expect, Ledger()).updates(plan, download)
        state = averaged(apply_round(method, state, plan, updates)[0], recipe.federation.ema_decay)
        yield state


def lifespan(rounds: Sequence[Sequence[float]]) -> float:
    """Return the rounds after the attack until success is below half of its last value; all rounds if it never is."""
    after = {int(t): success for t, _, success in rounds if t >= ATTACKED}
    return next((t - ATTACKED for t in sorted(after) if after[t] < after[ATTACKED] / 2), TRACKED)


def backdoor_table(cells: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> str:
    """By aggregator and attack: success when the attack ends and when the run does, how long it lasts, and accuracy."""
    by_name: Mapping[str, list[Sequence[Sequence[float]]]] = {name: [] for name, _ in cells}
    for name, rounds in cells:
        by_name[name].append(rounds)
    rows = []
    for name, runs in by_name.items():
        at_end = [dict((int(t), (a, s)) for t, a, s in rounds)[ATTACKED] for rounds in runs]
        last = [rounds[-1] for rounds in runs]
        rows.append(
            [
                name,
                mean_and_spread([success for _, success in at_end]),
                mean_and_spread([success for _, _, success in last]),
                f"{statistics.fmean(map(lifespan, runs)):.0f} of {TRACKED}",
                f"{mean_and_spread([own for own, _ in at_end])}, then {mean_and_spread([own for _, own, _ in last])}",
            ]
        )
    header = [
        "aggregator, attack",
        f"success after {ATTACKED} rounds",
        f"{TRACKED} rounds later",
        "rounds until half",
        "accuracy",
    ]
    return markdown(header, rows)
