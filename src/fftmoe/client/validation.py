"""A client's part of validation: the task's statistics, summed over the rows that it never trains on.

The sums hold one number for each statistic and the number of rows. Of a client with a single such row they say how the
model answered that row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fftmoe.data import Examples
from fftmoe.evaluate import tally
from fftmoe.records import Tensors, names
from fftmoe.tasks import Task


def validation_sums(
    model: Any,
    client_id: int,
    task: Task,
    num_outputs: int,
    examples: Examples,
    rows: Sequence[np.ndarray] | Mapping[int, np.ndarray],
) -> Tensors:
    """The sums over the client's validation rows, ready to be sent; zeros for a client without any.

    Args:
        model: as it is measured.
        num_outputs: of the model.
        examples: the data of all clients. rows: the validation rows of each client.

    Raises:
        RunError: the model's outputs are not finite.
    """
    own = rows[client_id]
    if len(own):
        held = examples.select(torch.from_numpy(own))
        sums = tally(model, task, held, 1 + int(held.labels.max())).sums.sum(0)
    else:
        sums = np.zeros(len(task.limits(num_outputs, 0, 0)[0]))
    return {names.VALIDATION: torch.from_numpy(np.append(sums, len(own))).float()}
