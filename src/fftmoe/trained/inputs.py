"""Read what a finished run is asked: texts, prompts and images without labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fftmoe.backbones import load_image_processor, load_tokenizer
from fftmoe.data import Examples, ImageExamples, read_images, read_texts, tokenize_texts
from fftmoe.errors import InputError
from fftmoe.trained.run import FinishedRun


@dataclass(frozen=True)
class Inputs:
    """The inputs of a prediction.

    Attributes:
        names: the texts themselves, or the names of the images.
        images: the images in the model's format, their labels all 0; None for texts.
    """

    names: Sequence[str]
    images: Examples | None = None


def read_inputs(run: FinishedRun, inputs: Sequence[str], file: Path | None, column: str | None) -> Inputs:
    """Texts, or images as the model of a run reads them.

    Args:
        inputs: texts, of which empty ones are left out; or paths of image files, of folders of them or of tables.
        file: further inputs: one text a line or a column of a table, or a further path of images.
        column: the column of a table; None for the one that the run's recipe names.

    Raises:
        InputError: an input cannot be read, or there is none.
    """
    form = run.inputs
    if run.reads_images:
        return _read_images(run, [*map(Path, inputs), *([file] if file else [])], column or form.image_column)
    usual = form.prompt_column if run.is_language_model and form.prompt_column else form.text_column
    texts = [text for text in inputs if text.strip()]
    texts += read_texts(file, column or usual) if file else []
    if not texts:
        raise InputError("there is no text; pass it as an argument, with --file, or on standard input")
    return Inputs(texts)


def _read_images(run: FinishedRun, places: Sequence[Path], column: str) -> Inputs:
    if not places:
        raise InputError(
            "there is no image to label; pass paths of image files, of a folder of them, or of a .parquet file"
        )
    names, examples = unlabelled_images(run, places, column)
    return Inputs(names, examples)


def unlabelled_images(run: FinishedRun, places: Sequence[Path], column: str) -> tuple[Sequence[str], Examples]:
    """The names of images, and the images in the format of the run's model; every label is 0.

    Raises:
        InputError: an image or a table cannot be read.
    """
    form = load_image_processor(run.backbone.model)
    names, pixels = read_images(places, column, form.size)
    labels = torch.zeros(len(names), dtype=torch.int64)
    return names, ImageExamples(pixels, labels, form.mean, form.std, form.scale)


def unlabelled_texts(run: FinishedRun, texts: Sequence[str]) -> Examples:
    """Texts as the tokens that the run's model reads; every label is 0."""
    labels = np.zeros(len(texts), dtype=np.int64)
    return tokenize_texts(texts, labels, load_tokenizer(run.backbone.model), run.inputs.max_length)
