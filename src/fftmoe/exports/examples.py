"""Chooses the examples that an imitation is fitted to, and computes the metrics that it is judged by."""

import math
from typing import Any

import numpy as np

from fftmoe.data import Examples, evaluation_batches
from fftmoe.errors import InputError
from fftmoe.evaluate import tally
from fftmoe.exports.check import Batch
from fftmoe.rng import numpy_generator
from fftmoe.shown import count_of
from fftmoe.tasks import Task

MOST, FEWEST = 1500, 20  # examples
NOT_INPUTS = ("labels", "reference")  # of a batch
HELD_OUT = 10  # one example of this many


def fitting_batches(examples: Examples, source: str, batch_size: int) -> tuple[list[Batch], list[Batch]]:
    """Return batches without labels to fit to, and a tenth of the examples as batches that are held out.

    Args:
        source: the name of the examples in a message.

    Raises:
        InputError: there are fewer than 20 examples.
    """
    if len(examples) < FEWEST:
        raise InputError(
            f"{source} holds {count_of(len(examples), 'example')}, which are too few; give at least {FEWEST}"
        )
    rows = numpy_generator(0, "imitate").permutation(len(examples))[:MOST]
    held = len(rows) // HELD_OUT
    return _batches(examples, rows[held:], batch_size), _batches(examples, rows[:held], batch_size)


def _batches(examples: Examples, rows: np.ndarray, batch_size: int) -> list[Batch]:
    batches = (examples.batch(chosen) for chosen in evaluation_batches(examples, batch_size, rows))
    return [{name: tensor for name, tensor in batch.items() if name not in NOT_INPUTS} for batch in batches]


def finite_metrics(model: Any, task: Task, examples: Examples, num_strata: int) -> dict[str, float]:
    """Return the task's metrics of a model on labelled examples, without those that are undefined there."""
    found = tally(model, task, examples, num_strata).metrics()
    return {name: value for name, value in found.items() if math.isfinite(value)}
