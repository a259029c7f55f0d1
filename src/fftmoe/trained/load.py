"""Use a finished run: load it, and measure it on texts or images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fftmoe import adapter
from fftmoe.backbones import find_device, find_precision, load_adapter, load_backbone, place
from fftmoe.config import Recipe, parse_recipe
from fftmoe.evaluate import tally
from fftmoe.setup.load import load_split_by_stratum
from fftmoe.store import read_labels, read_run
from fftmoe.tasks import make_task
from fftmoe.trained.generate import generation_metrics


@dataclass(frozen=True)
class Trained:
    """A run's adapted model, ready to use."""

    recipe: Recipe
    label_names: tuple[str, ...]
    model: Any


def load_run(folder: Path, top_k: int | None = None, *, exact: bool = False) -> Trained:
    """Load the adapter of a run folder on its backbone.

    Args:
        top_k: experts a token uses; the largest tier's when None.
        exact: in float32 on the CPU, whatever the run computed on and in.

    Raises:
        InputError: the folder is not a finished run, or `top_k` is above the number of experts.
    """
    recipe = recipe_of(folder)
    label_names = read_labels(folder / "adapter")
    device = find_device("cpu" if exact else "auto")  # the run's own may not be here
    backbone = own_backbone(recipe, label_names, device)
    precision = find_precision("float32" if exact else recipe.engine.precision, device)
    model = place(load_adapter(backbone, folder / "adapter"), device, precision)
    if top_k is not None:
        for moe in adapter.blocks(model).values():
            moe.view(top_k)
    return Trained(recipe, label_names, model)


def own_backbone(recipe: Recipe, label_names: Sequence[str], device: torch.device) -> nn.Module:
    """The frozen backbone of a run without its adapter, its head as heads start."""
    return load_backbone(
        recipe.backbone.model,
        task=recipe.backbone.task,
        num_labels=len(label_names),
        pooling=recipe.backbone.pooling,
        fourier_features=recipe.fourier_features,
        quantization=recipe.backbone.quantization,
        device=device,
    )


def evaluate_run(folder: Path, source: str | None = None, split: str = "test", top_k: int | None = None) -> dict:
    """The task's metrics of a run on a split of its own data, or of `source`.

    Returns:
        `metric`, the name of the run's own; its value and those of further metrics under their names; `num_examples`;
        and the run's metric within each class, or each stratum where there are no classes: `accuracy_by_label`,
        `perplexity_by_label`.
    """
    trained = load_run(folder, top_k)
    recipe, task = trained.recipe, make_task(trained.recipe.backbone.task)
    examples, strata = load_split_by_stratum(recipe, split, trained.label_names, source)
    found = tally(trained.model, task, examples, len(strata))
    by_label = zip(strata, found.by_stratum(), strict=True)
    wanted = recipe.evaluation.generate
    return {
        "metric": task.metric,
        **found.metrics(),
        "num_examples": len(examples),
        f"{task.metric}_by_label": {name: float(value) for name, value in by_label if not np.isnan(value)},
        **(generation_metrics(recipe, trained.model, examples, wanted) if wanted else {}),
    }


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a finished run was made from."""
    return parse_recipe(read_run(folder), str(folder / "config.yaml"))
