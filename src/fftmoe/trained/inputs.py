"""Reads what a finished run is asked: texts, prompts and images without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fftmoe.backbones import load_image_processor, load_tokenizer
from fftmoe.data import (
    BY_RECIPE,
    Examples,
    ImageExamples,
    NamedImages,
    TextEncoding,
    read_images,
    read_texts,
    tokenize_texts,
)
from fftmoe.errors import InputError
from fftmoe.trained.run import FinishedRun


@dataclass(frozen=True)
class Inputs:
    """Holds the inputs of a prediction, in the order in which they were given.

    Attributes:
        names: the texts themselves, None where a row of a table has none; or the names of the images.
        images: the images in the model's format, their labels all 0; None for texts.
        reasons: for each name why there is no image, or no text that can be read, else None.
    """

    names: Sequence[str | None]
    images: Examples | None = None
    reasons: Sequence[str | None] = ()


def read_inputs(
    run: FinishedRun,
    inputs: Sequence[str | None],
    file: Path | None,
    column: str | None,
    encoding: TextEncoding = BY_RECIPE,
) -> Inputs:
    """Return texts, or images as the model of a run reads them.

    Args:
        inputs: texts, blank ones and None too; or paths of image files, of folders of them or of tables.
        file: further inputs: one text a line or a column of a table, or a further path of images.
        column: the column of a table; None for the one that the run's recipe names.
        encoding: of text files.

    Raises:
        InputError: an input cannot be read, or is no text; there is none.
    """
    form = run.inputs
    if isinstance(inputs, str):
        raise InputError(f"the inputs are one text, {inputs!r:.50}; pass a list of texts")
    if run.reads_images:
        paths = [Path(_checked_text(place, path) or "") for place, path in enumerate(inputs, start=1)]
        return _read_images(run, [*paths, *([file] if file else [])], column or form.image_column, encoding)
    usual = form.prompt_column if run.is_language_model and form.prompt_column else form.text_column
    texts = [_checked_text(place, text) for place, text in enumerate(inputs, start=1)]
    reasons: list[str | None] = [None] * len(texts)
    if file:
        found = read_texts(file, column or usual, encoding, form.words_column)
        texts, reasons = texts + found.texts, reasons + found.reasons
    if not texts:
        raise InputError("there is no text; pass it as an argument, with --file, or on standard input")
    return Inputs(texts, reasons=reasons)


def _checked_text(place: int, text: object) -> str | None:
    """Return the text, or None; it may come from a program or from a command line in another encoding."""
    try:
        if isinstance(text, str):
            text.encode()
        elif text is not None:
            raise InputError(f"input {place} is {text!r:.50}, which is not a text; pass texts only")
    except UnicodeEncodeError as error:
        raise InputError(f"input {place}, {text!r:.50}, holds bytes that are no text in UTF-8; correct it") from error
    return text


def _read_images(run: FinishedRun, places: Sequence[Path], column: str, encoding: TextEncoding) -> Inputs:
    if not places:
        raise InputError(
            "there is no image to label; pass paths of image files, of a folder of them, or of a .parquet file"
        )
    found = read_images(places, column, load_image_processor(run.backbone.model).size, encoding)
    return Inputs(found.names, _image_examples(run, found), found.reasons)


def unlabelled_images(run: FinishedRun, place: Path, encoding: TextEncoding = BY_RECIPE) -> Examples:
    """Return the images of a file, a folder or a table in the format of the run's model; every label is 0.

    Args:
        encoding: of a table that is a text file.

    Raises:
        InputError: an image or a table cannot be read.
    """
    found = read_images([place], run.inputs.image_column, load_image_processor(run.backbone.model).size, encoding)
    found.check_undamaged()
    return _image_examples(run, found)


def _image_examples(run: FinishedRun, found: NamedImages) -> Examples:
    form = load_image_processor(run.backbone.model)
    labels = torch.zeros(len(found.pixels), dtype=torch.int64)
    return ImageExamples(found.pixels, labels, form.mean, form.std, form.scale)


def unlabelled_texts(run: FinishedRun, texts: Sequence[str]) -> Examples:
    """Return texts as the tokens that the run's model reads; every label is 0."""
    labels = np.zeros(len(texts), dtype=np.int64)
    return tokenize_texts(texts, labels, load_tokenizer(run.backbone.model), run.inputs.max_length)
