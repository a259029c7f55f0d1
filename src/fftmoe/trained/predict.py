"""Ask a finished run: what it says of texts and images, and how it goes on after prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import load_image_processor, load_tokenizer
from fftmoe.config import Recipe
from fftmoe.data import Examples, ImageExamples, read_images, read_texts, tokenize_texts
from fftmoe.errors import InputError
from fftmoe.evaluate import BATCH_SIZE, predict_logits
from fftmoe.head import make_head
from fftmoe.setup.load import is_language, reads_images
from fftmoe.trained.complete import MAX_NEW_TOKENS, complete
from fftmoe.trained.load import Trained, load_run, recipe_of
from fftmoe.trained.personal import load_client
from fftmoe.trained.tag import tag_words

Row = dict[str, Any]

SCORED = ("sequence-classification", "image-classification", "multi-label-classification")


def predict_run(
    folder: Path,
    inputs: Sequence[str] = (),
    top_k: int | None = None,
    *,
    file: Path | None = None,
    column: str | None = None,
    batch_size: int = BATCH_SIZE,
    scores: bool = False,
    client: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Row]:
    """What a run's model answers to each input.

    Args:
        inputs: texts or prompts; of a run on images the paths of image files, of folders of them, or of tables.
        top_k: experts a token uses; the largest tier's, or the client's, when None.
        file: further inputs: texts one a line or in a column of .csv, .jsonl or .parquet; images as `inputs`.
        column: of tables; the one that the run's recipe names when None.
        scores: with those of all labels, `{"scores": {label: score}}`.
        client: whose own model is asked, where the run has kept it (`load_client`).
        max_new_tokens: of a completion.

    Returns:
        `{"text" | "image", "label", "score"}` each, scores summing to 1 over the labels; where a text has any number of
        labels `{"text", "labels"}`, those with a score above one half; `{"text", "values": {target: number}}`;
        `{"text", "tokens", "tags"}` of words between spaces; of a language model `{"prompt", "completion"}`, the
        completion being the most likely token again and again.

    Raises:
        InputError: as `load_run` and `load_client`; an input cannot be read, or there is none.
    """
    recipe = recipe_of(folder)
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; at least one input is answered at a time")
    task = recipe.backbone.task
    if scores and task not in SCORED:
        raise InputError(f"a run of task {task} gives no label that could have a score; leave --scores out")
    if task in SCORED or task == "regression":
        names, examples = _asked(recipe, inputs, file, column)  # first: what is wrong there is told soonest
        trained = _load(folder, top_k, client)
        found = predict_logits(trained.model, examples, batch_size)
        kind = "image" if reads_images(recipe) else "text"
        return [{kind: name, **_answer(trained, row, scores)} for name, row in zip(names, found, strict=True)]
    texts = _texts(inputs, file, column or _column(recipe))
    trained = _load(folder, top_k, client)
    if is_language(recipe):
        return complete(recipe, trained.model, texts, max_new_tokens, batch_size)
    return tag_words(recipe, trained.model, trained.label_names, texts, batch_size)


def _column(recipe: Recipe) -> str:
    """What the recipe calls texts, where it knows any."""
    return recipe.data.prompt or recipe.data.text


def _load(folder: Path, top_k: int | None, client: int | None) -> Trained:
    return load_run(folder, top_k) if client is None else load_client(folder, client, top_k).trained


def _asked(
    recipe: Recipe, inputs: Sequence[str], file: Path | None, column: str | None
) -> tuple[Sequence[str], Examples]:
    """What the inputs are called, and the inputs as the model reads them."""
    if reads_images(recipe):
        return _images(recipe, [*map(Path, inputs), *([file] if file else [])], column or recipe.data.image)
    texts = _texts(inputs, file, column or recipe.data.text)
    tokenizer = load_tokenizer(recipe.backbone.model)
    unknown = np.zeros(len(texts), dtype=np.int64)
    return texts, tokenize_texts(texts, unknown, tokenizer, recipe.data.max_length)


def _texts(inputs: Sequence[str], file: Path | None, column: str) -> list[str]:
    texts = [text for text in inputs if text.strip()]
    texts += read_texts(file, column) if file else []
    if not texts:
        raise InputError("there is no text; pass it as an argument, with --file, or on standard input")
    return texts


def _images(recipe: Recipe, places: Sequence[Path], column: str) -> tuple[Sequence[str], Examples]:
    if not places:
        raise InputError(
            "there is no image to label; pass paths of image files, of a folder of them, or of a .parquet file"
        )
    form = load_image_processor(recipe.backbone.model)
    names, pixels = read_images(places, column, form.size)
    unknown = torch.zeros(len(names), dtype=torch.int64)
    return names, ImageExamples(pixels, unknown, form.mean, form.std, form.scale)


def _answer(trained: Trained, found: Tensor, scores: bool) -> Row:
    """Of one input, for which the model gives [C]."""
    names, task = trained.label_names, trained.recipe.backbone.task
    if task == "regression":
        return {"values": dict(zip(names, found.tolist(), strict=True))}
    if task == "multi-label-classification":
        probs = found.sigmoid()
        answer: Row = {"labels": [name for name, prob in zip(names, probs, strict=True) if prob > 0.5]}
    else:
        assert trained.recipe.head is not None, "a task with labels has a head"
        probs, best = make_head(trained.recipe.head.kind).probabilities(found), int(found.argmax())
        answer = {"label": names[best], "score": float(probs[best])}
    return {**answer, **({"scores": dict(zip(names, probs.tolist(), strict=True))} if scores else {})}
