"""Computes a client's part of validation: the task's statistics, summed over the rows that it never trains on.

The sums hold one number for each statistic and the number of rows. Of a client with a single such row they say how the
model answered that row. Of a task that counts by label, they also say how the model answered the only row of a label;
a client that does not want this leaves out the counts of such a label.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fftmoe.data import Examples, evaluation_batches
from fftmoe.evaluate import tally
from fftmoe.records import Tensors, names
from fftmoe.tasks import Task

COUNTED_TOGETHER = 64  # rows whose labels are counted in one batch


def validation_sums(
    model: Any,
    client_id: int,
    task: Task,
    num_outputs: int,
    examples: Examples,
    rows: Sequence[np.ndarray] | Mapping[int, np.ndarray],
    fewest_of_label: float = 1,
) -> Tensors:
    """Return the sums over the client's validation rows, ready to be sent; zeros for a client without any.

    Args:
        model: as it is measured.
        num_outputs: of the model.
        examples: the data of all clients. rows: the validation rows of each client.
        fewest_of_label: rows of a label below which the statistics that are counted for this label are zeros.

    Raises:
        RunError: the model's outputs are not finite.
    """
    own = rows[client_id]
    if len(own):
        held = examples.select(torch.from_numpy(own))
        sums = tally(model, task, held, 1 + int(held.labels.max())).sums.sum(0)
        if task.label_parts and fewest_of_label > 1:
            numbers_C = rows_with_labels(task, held, num_outputs)
            sums[np.tile((numbers_C > 0) & (numbers_C < fewest_of_label), task.label_parts).nonzero()] = 0.0
    else:
        sums = np.zeros(len(task.limits(num_outputs, 0, 0)[0]))
    return {names.VALIDATION: torch.from_numpy(np.append(sums, len(own))).float()}


def rows_with_labels(task: Task, examples: Examples, num_outputs: int) -> np.ndarray:
    """Return how many of these examples have each label, int64 [C], for a task that counts by label."""
    last = slice((task.label_parts - 1) * num_outputs, task.label_parts * num_outputs)
    numbers_C = np.zeros(num_outputs, dtype=np.int64)
    for rows in evaluation_batches(examples, COUNTED_TOGETHER):
        batch = examples.batch(rows)
        judged = batch["labels"].shape[: 1 + task.by_token]  # how often a label occurs depends on no logit
        numbers_C += (task.statistics(torch.zeros(*judged, num_outputs), batch)[:, last] > 0).sum(0).numpy()
    return numbers_C
