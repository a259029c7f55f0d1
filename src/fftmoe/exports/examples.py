"""What an imitation is fitted to and judged by: examples without labels, and the run's test split."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fftmoe.backbones import load_image_processor, load_tokenizer
from fftmoe.data import Examples, ImageExamples, evaluation_batches, read_images, read_texts, tokenize_texts
from fftmoe.errors import InputError
from fftmoe.evaluate import tally
from fftmoe.exports.check import Batch
from fftmoe.rng import numpy_generator
from fftmoe.setup.load import load_split, load_split_by_stratum, reads_images
from fftmoe.tasks import make_task
from fftmoe.trained.load import Trained

MOST, FEWEST = 1500, 20  # examples
HELD_OUT = 10  # one of so many


def unlabelled(trained: Trained, data: str | None, batch_size: int) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit to, and a tenth of them held out.

    Args:
        data: a file of texts or images without labels, or a source with a training split; None: the run's own.

    Raises:
        InputError: it cannot be read, or holds fewer than 20 examples.
    """
    if data is not None and Path(data).is_file():
        examples = _of_file(trained, Path(data))
    else:
        examples = load_split(trained.recipe, "train", trained.label_names, data)
    if len(examples) < FEWEST:
        raise InputError(f"{data or 'the training split'} holds {len(examples)} examples; give at least {FEWEST}")
    rows = numpy_generator(0, "imitate").permutation(len(examples))[:MOST]
    held = len(rows) // HELD_OUT
    return _batches(examples, rows[held:], batch_size), _batches(examples, rows[:held], batch_size)


def _of_file(trained: Trained, path: Path) -> Examples:
    recipe = trained.recipe
    if reads_images(recipe):
        form = load_image_processor(recipe.backbone.model)
        names, pixels = read_images([path], recipe.data.image, form.size)
        return ImageExamples(pixels, torch.zeros(len(names), dtype=torch.int64), form.mean, form.std, form.scale)
    texts = read_texts(path, recipe.data.text)
    unknown = np.zeros(len(texts), dtype=np.int64)
    return tokenize_texts(texts, unknown, load_tokenizer(recipe.backbone.model), recipe.data.max_length)


def _batches(examples: Examples, rows: np.ndarray, batch_size: int) -> list[Batch]:
    made = (examples.batch(chosen) for chosen in evaluation_batches(examples, batch_size, rows))
    return [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in made]


def measured(trained: Trained, model: Any) -> dict[str, float]:
    """The task's metrics of a model on the run's test split, those that are numbers there."""
    examples, strata = load_split_by_stratum(trained.recipe, "test", trained.label_names)
    found = tally(model, make_task(trained.recipe.backbone.task), examples, len(strata)).metrics()
    return {name: value for name, value in found.items() if math.isfinite(value)}
