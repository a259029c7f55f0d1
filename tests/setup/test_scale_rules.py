"""Which scale a target gets from the training rows, and which recipes have none."""

from typing import Any

import numpy as np
import pytest
import torch

from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import TargetedText
from fftmoe.data.tokens import flat_texts
from fftmoe.errors import InputError
from fftmoe.setup.target_scales import LEAST_SPREAD, scales_of, to_units, with_scales
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


def test_a_model_without_scales_is_left_alone():
    to_units(None, ())
