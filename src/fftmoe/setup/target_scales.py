"""Finds the scale of a regression's targets: from the recipe, or from the training rows, and how the head gets back to
units.

Training sees (y - centre) / scale, so that prices of a million and shares below one learn at the same rates. Every
metric and every saved model is in the units of the data.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fftmoe.backbones import head_parameters
from fftmoe.config import Recipe
from fftmoe.data import Examples, TargetedText
from fftmoe.errors import InputError, RunError
from fftmoe.tasks import LOSSES, Loss, Regression, Scales, Squares, Task, make_task

LEAST_SPREAD = 2.0**-22  # of the mean, two steps of a float32 number: closer answers are the same


def with_scales(recipe: Recipe, train: Examples) -> Recipe:
    """Return the recipe with the scales of its targets written out, where `data.target_scales` is `auto`.

    The centre is the mean of the training rows and the scale their standard deviation, over all clients. A head of the
    backbone's own (`backbone.pooling: native`) may have no bias, so its centre is 0 and its scale the root of the mean
    square. The scale is 1 where that is 0.

    Raises:
        InputError: targets differ by less than the head can hold in their units, so answers would not be those that
            were measured.
    """
    if recipe.backbone.task != "regression" or recipe.data.target_scales != "auto":
        return recipe
    assert isinstance(train, TargetedText)
    y_NT = train.targets.double().numpy()
    centres_T = np.zeros(y_NT.shape[1]) if recipe.backbone.pooling == "native" else y_NT.mean(0)
    scales_T = np.sqrt(((y_NT - centres_T) ** 2).mean(0))
    # What rounding leaves of a constant target is no scale.
    rounded_T = scales_T <= 1e-12 * np.abs(y_NT).max(0)
    is_constant_T = rounded_T & ((np.ptp(y_NT, 0) == 0) | (scales_T == 0))  # squares below 1e-308 are 0
    _check_resolved(recipe.data.targets or [], centres_T, scales_T, is_constant_T)
    scales_T[is_constant_T] = 1.0
    found = [[float(centre), float(scale)] for centre, scale in zip(centres_T, scales_T, strict=True)]
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"target_scales": found})})


def _check_resolved(names: list[str], centres_T: np.ndarray, scales_T: np.ndarray, is_constant_T: np.ndarray) -> None:
    for name, centre, scale, is_constant in zip(names, centres_T, scales_T, is_constant_T, strict=True):
        if not is_constant and scale < LEAST_SPREAD * abs(centre):
            raise InputError(
                f"data.targets: the values of {name!r} lie around {centre:.6g} and differ by about {scale:.2g}; the "
                "float32 numbers of a head cannot tell them apart, so subtract a number near that from the column"
            )


def scales_of(recipe: Recipe) -> Scales:
    """Return the scales of a recipe for which `with_scales` has run, or which names them."""
    scales = recipe.data.target_scales
    if recipe.backbone.task != "regression" or isinstance(scales, str):
        return ()
    return tuple((centre, scale) for centre, scale in scales)


def scaled_task(recipe: Recipe) -> Task:
    """Return the recipe's task; a regression's metrics are in the units of the data."""
    task = make_task(recipe.backbone.task)
    return replace(task, scales=scales_of(recipe)) if isinstance(task, Regression) else task


def scaled_loss(recipe: Recipe) -> Loss:
    """Return the loss of a task that brings one; a regression's is of scaled targets."""
    loss = LOSSES[recipe.backbone.task]()
    return replace(loss, scales=scales_of(recipe)) if isinstance(loss, Squares) else loss


@torch.no_grad()
def to_units(model: Any, scales: Scales) -> None:
    """Let the head of an adapted model answer in the units of the data: its last layer takes over the scales.

    W becomes scale * W, and b becomes scale * b + centre.

    Raises:
        RunError: these are too large for float32.
    """
    if not scales:
        return
    parameters = head_parameters(model)
    weight = [name for name in parameters if name.endswith("weight")][-1]
    centres_T, scales_T = torch.tensor(scales, dtype=torch.float64).T
    parameters[weight].copy_(parameters[weight].double() * scales_T[:, None].to(parameters[weight].device))
    bias = parameters.get(weight.removesuffix("weight") + "bias")
    if bias is not None:
        bias.copy_(bias.double() * scales_T.to(bias.device) + centres_T.to(bias.device))
    if not all(own.isfinite().all() for own in parameters.values()):
        raise RunError(
            "the head has numbers beyond float32 in the units of the targets, so it cannot be saved; lower "
            "federation.learning_rate or head.learning_rate, or write the targets in a larger unit"
        )
