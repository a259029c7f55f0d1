"""Use a finished run: measure it on data, or label texts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe import adapter
from fftmoe.backbones import load_adapter, load_backbone, load_tokenizer
from fftmoe.config import Recipe, parse_recipe
from fftmoe.data import LabelledText, Split, TokenizedText, load_source, tokenize_texts
from fftmoe.errors import InputError
from fftmoe.evaluate import accuracy_by_class, predict_logits
from fftmoe.experiment.build import fourier_features
from fftmoe.store import read_labels, read_run


@dataclass(frozen=True)
class Trained:
    """A run's adapted model, ready to use."""

    recipe: Recipe
    label_names: tuple[str, ...]
    model: Any
    tokenizer: Any


def load_run(folder: Path, top_k: int | None = None) -> Trained:
    """Load the adapter of a run folder on its backbone.

    Args:
        top_k: experts a token uses; the largest tier's when None.

    Raises:
        InputError: the folder is not a finished run, or `top_k` is above the number of experts.
    """
    values = read_run(folder)
    recipe = parse_recipe(values, str(folder / "config.yaml"))
    label_names = read_labels(folder / "adapter")
    backbone = load_backbone(
        recipe.backbone.model,
        task=recipe.backbone.task,
        num_labels=len(label_names),
        pooling=recipe.backbone.pooling,
        fourier_features=fourier_features(recipe),
    )
    model = load_adapter(backbone, folder / "adapter")
    if top_k is not None:
        for moe in adapter.blocks(model).values():
            moe.view(top_k)
    return Trained(recipe, label_names, model, load_tokenizer(recipe.backbone.model))


def evaluate_run(folder: Path, source: str | None = None, split: str = "test", top_k: int | None = None) -> dict:
    """Accuracy of a run on a split of its own data, or of `source`.

    Returns:
        `accuracy`, `num_examples` and `accuracy_by_label`.
    """
    trained = load_run(folder, top_k)
    data = trained.recipe.data
    text = load_source(source or data.source, text=data.text, label=data.label)
    examples = _tokenize(trained, _relabel(text, split, trained.label_names, source or data.source))
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
    """The label of each text, with its score: `{"text", "label", "score"}`; scores sum to 1 over the labels."""
    if not texts:
        raise InputError("there is no text to label; pass it as an argument, with --file, or on standard input")
    trained = load_run(folder, top_k)
    split = Split(texts=tuple(texts), labels=np.zeros(len(texts), dtype=np.int64), columns={})
    scores, labels = predict_logits(trained.model, _tokenize(trained, split)).softmax(1).max(1)
    return [
        {"text": text, "label": trained.label_names[int(label)], "score": float(score)}
        for text, label, score in zip(texts, labels, scores, strict=True)
    ]


def _tokenize(trained: Trained, split: Split) -> TokenizedText:
    return tokenize_texts(split.texts, split.labels, trained.tokenizer, trained.recipe.data.max_length)


def _relabel(text: LabelledText, split: str, label_names: Sequence[str], source: str) -> Split:
    """The split with its labels numbered as the run numbers them."""
    if split not in text.splits:
        raise InputError(f"{source} has no split {split!r}; it has {', '.join(text.splits)}")
    unknown = sorted(set(text.label_names) - set(label_names))
    if unknown:
        raise InputError(
            f"{source} has labels that the run was not trained on: {', '.join(unknown[:5])}; "
            f"the run knows {', '.join(label_names[:5])}, …"
        )
    number = np.array([label_names.index(name) for name in text.label_names])
    chosen = text.splits[split]
    return replace(chosen, labels=number[chosen.labels])
