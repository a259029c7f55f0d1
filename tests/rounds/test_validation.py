"""Rows that clients set aside: they measure the global model, and nothing learns from them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.client import sums, update
from fftmoe.config import load_recipe, parse_recipe
from fftmoe.errors import InputError
from fftmoe.evaluate import tally
from fftmoe.server.plan import plan_round
from fftmoe.server.solve import plan_validation
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import forecast
from fftmoe.setup.run import run
from fftmoe.store import RunFolder
from five_clients import AVERAGED, CLOSED
from run_fixtures import FiveRecipe, RunFive
from shared_fixtures import Cli

HELD = {"data.validation": 0.3}


def test_the_metric_is_that_of_the_global_model_on_the_rows_that_were_set_aside(run_five: RunFive):
    done = run_five("fft-moe", AVERAGED, **HELD)
    experiment = compose(load_recipe(done.folder / "config.yaml"))
    held = experiment.train.select(torch.from_numpy(experiment.held_out.rows.flat))
    assert len(held) > 5
    for round in (1, 2):
        state, _ = RunFolder(done.folder).checkpoints.load(round)
        experiment.method.install(experiment.model, state.tensors, experiment.largest)
        expected = tally(experiment.model, experiment.task, held, len(experiment.strata)).metrics()["accuracy"]
        assert done.rows[round]["validation_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert done.summary["validation_accuracy"] == done.rows[-1]["validation_accuracy"]


def test_no_row_that_was_set_aside_is_trained_on_or_summed(
    five_recipe: FiveRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used: set[int] = set()

    def seen(original: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            used.update(np.asarray(arguments[place]).tolist())
            return original(*arguments, **more)

        return call

    monkeypatch.setattr(update, "local_batches", seen(update.local_batches, 1))
    monkeypatch.setattr("fftmoe.client.runtime.head_sums", seen(sums.head_sums, 2))
    recipe = parse_recipe(five_recipe("fft-moe", CLOSED, **HELD, **{"engine.clients_per_batch": 1}), "tiny")
    run(recipe, tmp_path / "run")
    experiment = compose(recipe)
    assert used == set(experiment.partition.indices.flat.tolist())
    assert not used & set(experiment.held_out.rows.flat.tolist())


@pytest.mark.parametrize("method", ["fft-moe", "fedsa-lora"])
def test_it_is_measured_when_it_is_due_and_its_bytes_are_counted(run_five: RunFive, method: str):
    settings = {"federation.rounds": 3, "evaluation.every": 2, "federation.clients_per_round": 1}
    plain, held = (run_five(method, AVERAGED, **settings, **more) for more in ({}, HELD))
    measured = [row.get("validation_accuracy") is not None for row in held.rows]
    assert measured == [True, False, True, True]
    assert not any("validation_accuracy" in row for row in plain.rows)
    assert held.rows[0]["bytes_down"] > 0 == plain.rows[0]["bytes_down"]
    # The bytes of a tier are those of training, as before.
    assert held.summary["per_client_round_by_tier"].keys() == plain.summary["per_client_round_by_tier"].keys()
    rounds = [tier["client_rounds"] for tier in held.summary["per_client_round_by_tier"].values()]
    assert sum(rounds) == 3


@pytest.mark.parametrize(
    ("head", "validated"),
    [
        ({"every": 3}, [0, 6, 7]),  # of rounds 0, 2, 4, 6 and 7 the head is computed after 0, 6 and 7
        ({"every": 7}, [0, 7]),
        ({"every": 1}, [0, 2, 4, 6, 7]),
        ({"every": 7, "update": "frozen"}, [0, 2, 4, 6, 7]),
        ({"every": 7, "update": "trained", "learning_rate": 0.01}, [0, 2, 4, 6, 7]),
    ],
)
def test_no_round_counts_whose_head_is_of_other_features(run_five: RunFive, head: dict[str, Any], validated: list[int]):
    """In between, a computed head is that of an earlier adapter, and the model looks worse than it is."""
    settings = {"federation.rounds": 7, "evaluation.every": 2, "evaluation.keep": "best"}
    done = run_five("fft-moe", {**CLOSED, **head}, **HELD, **settings)
    assert [row["round"] for row in done.rows if row.get("validation_accuracy") is not None] == validated
    assert [row["round"] for row in done.rows if row.get("accuracy") is not None] == [0, 2, 4, 6, 7]
    assert done.summary["best_round"] in validated
    expected = forecast(load_recipe(done.folder / "config.yaml")).validation
    assert expected is not None
    assert expected.times == len(validated)


def test_worker_processes_and_batches_of_clients_give_the_same(five_recipe: FiveRecipe, tmp_path: Path):
    values = five_recipe("fft-moe", AVERAGED, **HELD, **{"engine.clients_per_batch": 3})
    found = [
        run(
            parse_recipe({**values, "engine": {**values.get("engine", {}), "workers": workers}}, "tiny"), folder
        ).summary
        for workers, folder in ((1, tmp_path / "one"), (2, tmp_path / "two"))
    ]
    assert found[0]["validation_accuracy"] == found[1]["validation_accuracy"]
    assert found[0]["bytes_up"] == found[1]["bytes_up"]


def test_a_client_validates_its_own_model_with_its_own_budget(five_recipe: FiveRecipe):
    """And the global model, of which there is one, with the largest."""
    for method, own in (("local-only", True), ("fft-moe", False)):
        made = compose(parse_recipe(five_recipe(method, AVERAGED, **HELD), "tiny"))
        state, everyone = made.first_state(), range(made.num_clients)
        assert len({made.budgets[client] for client in everyone}) > 1
        arguments = (everyone, made.largest, made.budgets, made.training, 3)
        later = plan_validation(made.method, dataclasses.replace(state, round=1), *arguments)
        trained = plan_round(made.method, state, 1, everyone, made.budgets, made.training, 3)
        for plan, training in zip(later.clients, trained.clients, strict=True):
            assert plan.task == "validate"
            assert (plan.budget == made.budgets[plan.client_id]) or not own
            assert (plan.budget == made.largest) or own
            assert (plan.experts == training.experts) or not own
        first = plan_validation(made.method, state, *arguments)
        assert {plan.budget.blocks for plan in first.clients} == {()}  # a new adapter adds nothing


def test_a_private_run_keeps_sums_over_enough_clients(run_five: RunFive):
    private = {**HELD, "adapter.residents": "balanced", "privacy": {"min_contributors": 2}}
    assert 0 <= run_five("fft-moe", AVERAGED, **private).summary["validation_accuracy"] <= 1


def test_below_that_number_nothing_is_kept(run_five: RunFive, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fftmoe.setup.held_out.HeldOut.clients", (3,))
    private = {**HELD, "adapter.residents": "balanced", "privacy": {"min_contributors": 2}, "seed": 17}
    done = run_five("fft-moe", AVERAGED, **private)
    assert [row["validation_accuracy"] for row in done.rows] == [None] * 3


def test_too_few_rows_are_refused(five_recipe: FiveRecipe):
    values = five_recipe("fft-moe", AVERAGED, **HELD, **{"data.train_examples": 13, "partition.kind": "iid"})
    with pytest.raises(InputError, match=r"none of the 5 clients has 5 of them or more; set data.validation=off"):
        compose(parse_recipe({**values, "partition": {"kind": "iid", "num_clients": 5}}, "tiny"))


def test_the_terminal_and_the_page_show_it(cli: Cli, recipe_file: Path, tmp_path: Path):
    folder = tmp_path / "run"
    done = cli("run", recipe_file, "--output", folder, "--set", "data.validation=0.2", "--set", "federation.rounds=2")
    assert done.status == 0
    assert done.out.count("  validation 0.") == 3
    assert ">validation<" in (folder / "report.html").read_text()
