"""Several labels, numbers and tags with a solved head: whole runs, from the recipe without a head to its answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crossed_inputs import Inputs
from fftmoe.client.sums import groups_of, in_frequent_groups
from fftmoe.config import complete_recipe
from fftmoe.records import pack_plan, unpack_update
from fftmoe.server.solve import plan_sums
from fftmoe.setup.asked import evaluate_run, predict_run
from fftmoe.setup.clients import NoStates, build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.judged import make_loss
from fftmoe.setup.run import run
from fftmoe.tasks import LossByExample

TASKS = ("multi-label-classification", "regression", "token-classification")
METRIC = {"multi-label-classification": "f1", "regression": "mean_absolute_error", "token-classification": "accuracy"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs.write(tmp_path_factory.mktemp("inputs"))


def recipe_of(inputs: Inputs, task: str, **changes: Any) -> Any:
    values = inputs.recipe(task)
    values["partition"] = {"kind": "iid", "num_clients": 3}
    values["federation"] |= {"rounds": 3, "local_steps": 5}
    values["evaluation"] = {"baselines": ["head_only"]}
    values["head"] = {"num_features": 41}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values.get(section, {}), name: value}
    return complete_recipe(values, "tiny")[0]


@pytest.fixture(scope="module")
def finished(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {task: tmp_path_factory.mktemp("runs") / task for task in TASKS}
    for task, folder in folders.items():
        run(recipe_of(inputs, task), folder)
    return folders


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_a_run_begins_with_the_solved_head_and_says_what_it_is_worth(finished: dict[str, Path], task: str):
    summary = json.loads((finished[task] / "summary.json").read_text())
    first = rows_of(finished[task])[0]
    assert first["round"] == 0
    assert summary["baselines"]["head_only"]["value"] == first[METRIC[task]]


@pytest.mark.parametrize("task", TASKS)
def test_what_a_run_measured_is_what_its_saved_model_answers(finished: dict[str, Path], task: str):
    summary, measured = json.loads((finished[task] / "summary.json").read_text()), evaluate_run(finished[task])
    # The saved head is divided by its temperature, or multiplied by the scale of the numbers, and rounded to float32.
    assert measured[METRIC[task]] == pytest.approx(summary[METRIC[task]], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_labels_have_a_temperature_and_numbers_none(finished: dict[str, Path], task: str):
    kept = json.loads((finished[task] / "adapter" / "labels.json").read_text())
    assert ("temperature" in kept) == (task != "regression")


@pytest.mark.parametrize("task", TASKS)
def test_clients_use_the_solved_head_in_their_own_way(finished: dict[str, Path], task: str, tmp_path: Path):
    """Several labels and tags have personal answers with private parts; numbers have none."""
    listed = json.loads((finished[task] / "summary.json").read_text())["clients"]
    if task == "regression":
        assert "answer" not in listed
        return
    assert len(listed["answer"]) == 3
    assert all(margin >= 0 for margin in listed["margin"])
    measured = [evaluate_run(finished[task], client=client) for client in range(3)]
    assert [each["prior"] for each in measured] == [f"client {client}" for client in range(3)]
    # Each client holds rows of all kinds, so that its answers differ little from everyone's on all test rows.
    common = evaluate_run(finished[task])[METRIC[task]]
    assert all(each[METRIC[task]] > common - 0.2 for each in measured)
    estimated = evaluate_run(finished[task], prior="estimate")
    assert estimated["prior"] == "estimate"
    assert estimated[METRIC[task]] > common - 0.1


def test_the_colours_of_a_text_are_found(finished: dict[str, Path]):
    found = [
        answer["labels"] for answer in predict_run(finished["multi-label-classification"], ["say red", "ash blue"])
    ]
    assert found == [["red"], ["blue"]]


def test_the_scores_of_labels_are_the_answers(finished: dict[str, Path]):
    for answer in predict_run(finished["multi-label-classification"], ["say red", "ash", "bay blue"], scores=True):
        assert answer["labels"] == [name for name, score in answer["scores"].items() if score > 0.5]
        assert all(0 <= score <= 1 for score in answer["scores"].values())


@pytest.mark.parametrize("task", TASKS[:2])
def test_clients_in_one_batch_learn_what_they_learn_one_after_another(inputs: Inputs, tmp_path: Path, task: str):
    found = []
    for number in (1, 3):
        run(recipe_of(inputs, task, engine__clients_per_batch=number), tmp_path / str(number))
        found.append(load_file(tmp_path / str(number) / "adapter" / "adapter_model.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        # Sums of float32 products in another order, over fifteen steps of AdamW at a rate of 0.01.
        torch.testing.assert_close(found[1][name], tensor, rtol=2e-2, atol=2e-3, msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_the_clients_that_share_a_batch_are_those_whose_examples_are_judged_as_a_whole(inputs: Inputs, task: str):
    assert isinstance(make_loss(recipe_of(inputs, task)), LossByExample) == (task != "token-classification")


@pytest.mark.parametrize("task", TASKS)
def test_the_head_before_the_first_round_does_not_depend_on_the_division(inputs: Inputs, tmp_path: Path, task: str):
    values = []
    for clients in (1, 2, 5):
        recipe = recipe_of(
            inputs, task, partition__num_clients=clients, federation__rounds=1, federation__clients_per_round=1
        )
        assert len(compose(recipe).partition.sizes) == clients
        run(recipe, tmp_path / str(clients))
        values.append(rows_of(tmp_path / str(clients))[0][METRIC[task]])
    assert values == pytest.approx([values[0]] * 3, rel=1e-4)  # sums are sent in float32


@pytest.mark.parametrize(("task", "least"), [(TASKS[0], 1), (TASKS[1], 0), (TASKS[2], 1)])
def test_rows_of_rare_labels_are_in_no_sum(inputs: Inputs, task: str, least: int):
    """The statistics of a client whose policy has a limit are those of its other rows, to the last bit."""
    experiment = compose(recipe_of(inputs, task))
    runtime = build_client(client_spec(experiment, NoStates()), experiment.model)
    rows = experiment.partition.indices[0]
    groups = groups_of(experiment.train, rows, len(experiment.label_names), runtime.answers)
    fewest = 1 + int(groups.sum(0).min(initial=99, where=groups.sum(0) > 0))
    kept = rows[in_frequent_groups(groups, fewest)]
    assert least <= len(rows) - len(kept) < len(rows)
    state = experiment.method.init(experiment.model)
    plan = plan_sums(state, [0], experiment.largest, experiment.training, 3)
    message = pack_plan(plan.clients[0], experiment.method.download(state, plan.clients[0]))
    careful, others = replace(runtime, fewest_of_label=fewest), replace(runtime, partition={0: kept})
    found, expected = (unpack_update(client([message])[0]) for client in (careful, others))
    assert found.num_examples == expected.num_examples == len(kept)
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(tensor, expected.tensors[name]) for name, tensor in found.tensors.items())
