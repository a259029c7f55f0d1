"""Use a finished run: measure it on texts or images, or label texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.backbones import find_device, find_precision, load_adapter, load_backbone, load_tokenizer, place
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import tokenize_texts
from fftmoe.errors import InputError
from fftmoe.evaluate import accuracy_by_class, predict_logits
from fftmoe.experiment.build import fourier_features
from fftmoe.experiment.load import load_split, reads_images
from fftmoe.store import read_labels, read_run


@dataclass(frozen=True)
class Trained:
    """A run's adapted model, ready to use."""

    recipe: Recipe
    label_names: tuple[str, ...]
    model: Any


def load_run(folder: Path, top_k: int | None = None) -> Trained:
    """Load the adapter of a run folder on its backbone.

    Args:
        top_k: experts a token uses; the largest tier's when None.

    Raises:
        InputError: the folder is not a finished run, or `top_k` is above the number of experts.
    """
    recipe = recipe_of(folder)
    label_names = read_labels(folder / "adapter")
    backbone = load_backbone(
        recipe.backbone.model,
        task=recipe.backbone.task,
        num_labels=len(label_names),
        pooling=recipe.backbone.pooling,
        fourier_features=fourier_features(recipe),
    )
    device = find_device("auto")  # the run's own may not be here
    model = place(load_adapter(backbone, folder / "adapter"), device, find_precision(recipe.engine.precision, device))
    if top_k is not None:
        for moe in adapter.blocks(model).values():
            moe.view(top_k)
    return Trained(recipe, label_names, model)


def evaluate_run(folder: Path, source: str | None = None, split: str = "test", top_k: int | None = None) -> dict:
    """Accuracy of a run on a split of its own data, or of `source`.

    Returns:
        `accuracy`, `num_examples` and `accuracy_by_label`.
    """
    trained = load_run(folder, top_k)
    examples = load_split(trained.recipe, split, trained.label_names, source)
    predicted = predict_logits(trained.model, examples).argmax(1)
    by_class = accuracy_by_class(predicted, examples.labels, len(trained.label_names))
    return {
        "accuracy": float((predicted == examples.labels).double().mean()),
        "num_examples": len(examples),
        "accuracy_by_label": {
            name: float(value) for name, value in zip(trained.label_names, by_class, strict=True) if not np.isnan(value)
        },
    }


def predict_run(folder: Path, texts: Sequence[str], top_k: int | None = None) -> list[dict[str, Any]]:
    """The label of each text, with its score: `{"text", "label", "score"}`; scores sum to 1 over the labels.

    Raises:
        InputError: as `load_run` and `check_labels_texts`, or there is no text.
    """
    check_labels_texts(folder)
    if not texts:
        raise InputError("there is no text to label; pass it as an argument, with --file, or on standard input")
    trained = load_run(folder, top_k)
    tokenizer = load_tokenizer(trained.recipe.backbone.model)
    unknown = np.zeros(len(texts), dtype=np.int64)
    examples = tokenize_texts(texts, unknown, tokenizer, trained.recipe.data.max_length)
    scores, labels = predict_logits(trained.model, examples).softmax(1).max(1)
    return [
        {"text": text, "label": trained.label_names[int(label)], "score": float(score)}
        for text, label, score in zip(texts, labels, scores, strict=True)
    ]


def check_labels_texts(folder: Path) -> None:
    """Asked before texts are read, which may be typed at a terminal. What is no run at all `load_run` finds.

    Raises:
        InputError: the run is one on images.
    """
    if (folder / "config.yaml").is_file() and reads_images(recipe_of(folder)):
        raise InputError(
            f"the run in {folder} was trained on images, and predict labels texts only; "
            f"measure it on labelled images with `fftmoe evaluate {folder}`"
        )


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a finished run was made from."""
    return parse_recipe(read_run(folder), str(folder / "config.yaml"))
