"""The order in which clients answer, and who ran them, change no bit of the result."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from fftmoe.config import parse_recipe
from fftmoe.engines.base import Engine, Group, Quota, Reply
from fftmoe.records import RoundPlan, ServerState
from fftmoe.rng import numpy_generator
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.server.apply import apply_round
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.engine import open_engine
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.store import RunFolder, pack_state

CLIENTS = 101


class Replay:
    """Delivers recorded answers in another order."""

    def __init__(self, replies: Sequence[Reply], order: Sequence[int]) -> None:
        self._replies = [replies[place] for place in order]

    def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply]:
        yield from self._replies


def replies_of(recipe: dict[str, Any], folder: Path, workers: int) -> tuple[Experiment, RoundPlan, list[Reply]]:
    """A round in which all clients train."""
    experiment = compose(parse_recipe({**recipe, "engine": {"workers": workers}}, "tiny"))
    state = experiment.method.init(experiment.model)
    all_clients = range(CLIENTS)
    plan = plan_round(experiment.method, state, 1, all_clients, experiment.budgets, experiment.training, seed=3)
    taken: list[Reply] = []

    class Kept:
        def run_clients(self, groups: Sequence[Group], quota: Quota | None = None) -> Iterator[Reply]:
            for reply in engine.run_clients(groups, quota):
                assert isinstance(reply, Reply)
                taken.append(reply)
                yield reply

    engine = open_engine(experiment, RunFolder.create(folder, recipe, 0))
    try:
        merged(experiment, plan, cast(Engine, Kept()), state)
    finally:
        engine.close()
    return experiment, plan, sorted(taken)


def merged(experiment: Experiment, plan: RoundPlan, engine: Engine, state: ServerState) -> bytes:
    download, expect = partial(experiment.method.download, state), expectations(experiment)
    updates = Exchange(engine, expect, Ledger()).updates(plan, download)
    return pack_state(apply_round(experiment.method, state, plan, updates)[0])


@pytest.mark.one_rounding("worker processes")
@pytest.mark.parametrize(
    ("aggregator", "number"),
    [
        (None, 11),
        pytest.param(None, 100, marks=pytest.mark.slow),
        *((name, 7) for name in ("norm-bound", "trimmed-mean", "median", "multi-krum")),
    ],
)
def test_all_orders_of_a_hundred_clients_and_two_workers_give_one_state(
    recipe_values: dict[str, Any], tmp_path: Path, aggregator: str | None, number: int
):
    recipe = {
        **recipe_values,
        "partition": {"kind": "iid", "num_clients": CLIENTS, "min_examples": 1},
        "federation": {**recipe_values["federation"], "clients_per_round": CLIENTS, "local_steps": 1},
        "robustness": "off" if aggregator is None else {"aggregator": aggregator},
        "evaluation": {"baselines": "off"},
    }
    experiment, plan, one = replies_of(recipe, tmp_path / "one", workers=1)
    if aggregator is None:  # an aggregator has no part in what clients answer
        _, _, two = replies_of(recipe, tmp_path / "two", workers=2)
        assert [(r.client_id, r.message) for r in two] == [(r.client_id, r.message) for r in one]
    state, rng = experiment.method.init(experiment.model), numpy_generator(5)
    orders = [range(CLIENTS), *(rng.permutation(CLIENTS) for _ in range(number))]
    states = {merged(experiment, plan, cast(Engine, Replay(one, order)), state) for order in orders}
    assert len(states) == 1
    assert states != {pack_state(state)}
