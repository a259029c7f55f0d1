"""Which scale a target gets from the training rows, and which recipes have none."""

from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import TargetedText
from fftmoe.data.tokens import flat_texts
from fftmoe.errors import InputError, RunError
from fftmoe.setup import target_scales
from fftmoe.setup.target_scales import LEAST_SPREAD, scaled_loss, scaled_task, scales_of, to_units, with_scales
from fftmoe.tasks import Regression, Squares
from five_clients import changed


def rows(*targets: float) -> TargetedText:
    texts = flat_texts([np.array([3], dtype=np.int32)] * len(targets), np.zeros(len(targets)), 0)
    return TargetedText(texts, torch.tensor(targets, dtype=torch.float64)[:, None])


def regression(recipe_values: dict[str, Any], **changes: Any) -> Recipe:
    head = {"kind": "averaged", "learning_rate": 0.1}
    own = {"backbone__task": "regression", "data__targets": ["y"], "head": head, **changes}
    values = changed(recipe_values, **own)
    values["data"].pop("label", None)
    return parse_recipe(values, "test")


@pytest.mark.parametrize(
    ("pooling", "targets", "expected"),
    [
        ("mean", (1.0, 3.0), (2.0, 1.0)),
        ("native", (3.0, 4.0), (0.0, 12.5**0.5)),  # such a head may have no bias
        ("mean", (7.0, 7.0), (7.0, 1.0)),
        ("native", (0.0, 0.0), (0.0, 1.0)),
        ("mean", (0.1, 0.1, 0.1), (0.1, 1.0)),  # the mean is rounded, so that the sum of squares is not 0
        ("mean", (1e-200, 3e-200), (2e-200, 1.0)),  # the squares are 0
    ],
)
def test_the_scale_follows_from_the_training_rows(
    recipe_values: dict[str, Any], pooling: str, targets: tuple[float, ...], expected: tuple[float, float]
):
    recipe = regression(recipe_values, backbone__pooling=pooling)
    assert scales_of(recipe) == ()
    assert scales_of(with_scales(recipe, rows(*targets))) == (pytest.approx(expected),)


def test_a_spread_that_a_head_can_just_hold_is_taken(recipe_values: dict[str, Any]):
    recipe = regression(recipe_values, backbone__pooling="mean")
    just = LEAST_SPREAD
    assert scales_of(with_scales(recipe, rows(1 - just, 1 + just))) == ((1.0, just),)
    with pytest.raises(InputError, match="the values of 'y' lie around 1 and differ by about"):
        with_scales(recipe, rows(1 - just / 2, 1 + just / 2))


def test_what_has_no_scale_to_find_stays_as_it_is(recipe_values: dict[str, Any]):
    classes = parse_recipe(recipe_values, "test")
    plain = regression(recipe_values, data__target_scales="none")
    named = regression(recipe_values, data__target_scales=[[5.0, 2.0]])
    for recipe, scales in ((classes, ()), (plain, ()), (named, ((5.0, 2.0),))):
        assert with_scales(recipe, rows(1.0, 3.0)) is recipe
        assert scales_of(recipe) == scales


def test_the_task_and_the_loss_of_a_regression_have_its_scales(recipe_values: dict[str, Any]):
    named = regression(recipe_values, data__target_scales=[[5.0, 2.0]])
    task, loss = scaled_task(named), scaled_loss(named)
    assert isinstance(task, Regression)
    assert isinstance(loss, Squares)
    assert task.scales == loss.scales == ((5.0, 2.0),)
    assert not isinstance(scaled_task(parse_recipe(recipe_values, "test")), Regression)


def head(monkeypatch: pytest.MonkeyPatch, bias: list[float] | None) -> dict[str, torch.Tensor]:
    """The parameters of a model's head, which has another layer below the last one."""
    parameters = {"dense.weight": torch.ones(2, 2), "dense.bias": torch.ones(2), "out.weight": torch.ones(2, 2)}
    if bias is not None:
        parameters["out.bias"] = torch.tensor(bias)
    monkeypatch.setattr(target_scales, "head_parameters", lambda model: parameters)
    return parameters


def test_the_last_layer_takes_over_the_scales(monkeypatch: pytest.MonkeyPatch):
    for bias in ([1.0, -1.0], None):
        parameters = head(monkeypatch, bias)
        to_units(object(), ((5.0, 2.0), (7.0, 3.0)))
        assert parameters["out.weight"].tolist() == [[2.0, 2.0], [3.0, 3.0]]
        assert bias is None or parameters["out.bias"].tolist() == [7.0, 4.0]
        assert parameters["dense.weight"].eq(1).all()
        assert parameters["dense.bias"].eq(1).all()


@pytest.mark.parametrize("scales", [((0.0, 1e39), (0.0, 1.0)), ((1e39, 1.0), (0.0, 1.0))])
def test_a_head_beyond_float32_is_refused(monkeypatch: pytest.MonkeyPatch, scales: Any):
    head(monkeypatch, [1.0, 1.0])
    with pytest.raises(RunError, match="the head has numbers beyond float32"):
        to_units(object(), scales)


def test_a_model_without_scales_is_left_alone():
    to_units(None, ())
