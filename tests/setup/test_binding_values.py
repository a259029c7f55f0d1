"""What a run is bound to, of each kind of task, and which checkpoints are of its model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.records import ServerState, Tensors, names
from fftmoe.setup import bindings
from fftmoe.setup.bindings import bindings_of, check_state, inputs_of
from fftmoe.setup.compose import compose
from five_clients import changed

BY_AUTHOR = {"kind": "natural", "by": "author"}
D_IN, D_OUT, RANK, PATH = 5, 7, 3, "encoder.layer.1.output.dense"


def merged(**parts: torch.Tensor) -> Tensors:
    return {names.merged_tensor(PATH, part): tensor for part, tensor in parts.items()}


def checked(tensors: Tensors) -> None:
    """Check a checkpoint that has these merged tensors beside those of the run's model."""
    own = {"head.weight": torch.ones(2, 3)}
    initial = ServerState(0, own)
    check_state(replace(initial, round=3, tensors={**own, **tensors}), initial, Path("run"), {PATH: (D_IN, D_OUT)})


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        merged(W=torch.ones(D_OUT, D_IN)),
        merged(A=torch.ones(RANK, D_IN), B=torch.ones(D_OUT, RANK)),
    ],
)
def test_what_was_merged_into_a_module_belongs_to_a_checkpoint(tensors: Tensors):
    checked(tensors)


@pytest.mark.parametrize(
    "tensors",
    [
        merged(W=torch.ones(D_IN, D_OUT)),
        merged(W=torch.ones(D_OUT, D_IN, dtype=torch.float64)),
        merged(A=torch.ones(RANK, D_IN)),
        merged(A=torch.ones(RANK, D_IN), B=torch.ones(D_OUT, RANK + 1)),
        merged(A=torch.ones(RANK, D_IN), B=torch.ones(D_OUT, RANK), W=torch.ones(D_OUT, D_IN)),
        {"other": torch.ones(2)},
    ],
)
def test_what_fits_no_module_is_refused(tensors: Tensors):
    with pytest.raises(InputError, match="the checkpoint of run does not fit its recipe"):
        checked(tensors)


def test_labels_are_those_of_the_data_or_else_the_strata(
    recipe_values: dict[str, Any], language_values: dict[str, Any]
):
    """A language model has no labels, but rows are divided by something."""
    for values, has_labels in ((recipe_values, True), (language_values, False)):
        recipe = parse_recipe(values, "test")
        experiment = compose(recipe)
        assert bool(experiment.label_names) is has_labels
        bound = bindings_of(experiment, recipe)["labels"]
        assert bound == list(experiment.label_names if has_labels else experiment.strata) != []
        assert inputs_of(recipe).get("labels") == (bound if has_labels else None)
        assert bindings_of(replace(experiment, label_names=("ivy", "ash")), recipe)["labels"] == ["ivy", "ash"]


@pytest.mark.parametrize(("most", "are_written"), [(4, True), (3, False)])
def test_the_names_of_very_many_clients_are_not_written(
    recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch, most: int, are_written: bool
):
    monkeypatch.setattr(bindings, "MOST_NAMES", most)
    recipe = parse_recipe(changed(recipe_values, partition=BY_AUTHOR, federation__clients_per_round=3), "test")
    population = bindings_of(compose(recipe), recipe)["population"]
    assert population["clients"] == 4
    assert ("names" in population) is are_written
