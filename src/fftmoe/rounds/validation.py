"""Measures how well the global model answers the rows that the clients have set aside.

The clients run the model on their own rows and send sums of the task's statistics (`client/validation.py`). Nobody else
sees those rows, and no model learns from them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fftmoe.methods.base import Method
from fftmoe.records import Budget, ServerState, Training, names
from fftmoe.rounds.exchange import Exchange
from fftmoe.server.solve import plan_validation
from fftmoe.tasks import Task

VALIDATION_PREFIX = "validation_"
VALIDATION_ERROR = VALIDATION_PREFIX + "standard_error"

Validate = Callable[[ServerState], dict[str, float]]
"""From a state to its validation metric by name; empty where none is due."""


def no_validation(state: ServerState) -> dict[str, float]:
    """Return nothing: no rows are set aside."""
    return {}


def validated_in(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the validation metric of a row, by name; empty where none was due."""
    return {name: value for name, value in row.items() if name.startswith(VALIDATION_PREFIX)}


@dataclass(frozen=True)
class Validation:
    """Validates a state before the first round, after the rounds that are due, and after the last one.

    Attributes:
        due: whether the model is validated after this many rounds.
        budget: with which all clients measure the global model. budgets: by client, of its own model if it has one.
        clients: that have set rows aside; all that can be reached are asked.
        fewest: clients below which nothing is kept.
    """

    exchange: Exchange
    method: Method
    task: Task
    due: Callable[[int], bool]
    budget: Budget
    budgets: Mapping[int, Budget]
    training: Training
    clients: Sequence[int]
    seed: int
    fewest: int = 1

    def __call__(self, state: ServerState) -> dict[str, float]:
        """Return the metric over all validation rows of the clients that answer; NaN if too few do.

        A metric between 0 and 1 comes with its standard error (`error_of_share`).
        """
        if not self.due(state.round):
            return {}
        absent = self.exchange.engine.absent()
        asked = [client for client in self.clients if client not in absent]
        plan = plan_validation(self.method, state, asked, self.budget, self.budgets, self.training, self.seed)
        total, rows, number = np.float64(0.0), 0.0, 0
        for update in self.exchange.updates(plan, partial(self.method.download, state)):
            found = update.tensors[names.VALIDATION].double().numpy()
            total, rows, number = total + found[:-1], rows + float(found[-1]), number + 1
        metric = self.task.metric
        enough = number >= self.fewest
        value = float(self.task.metrics(np.asarray(total))[metric]) if enough else float("nan")
        found = {VALIDATION_PREFIX + metric: value}
        if self.task.bounds == (0.0, 1.0) and 0.0 <= value <= 1.0 and rows:
            found[VALIDATION_ERROR] = error_of_share(value, rows)
        return found


def error_of_share(share: float, rows: float) -> float:
    """Return the standard error of a share of so many rows, with a row that is right and one that is wrong added.

    Without these two (Laplace's rule of succession), 12 of 12 right would have no error.
    """
    added = (share * rows + 1) / (rows + 2)
    return math.sqrt(added * (1 - added) / (rows + 2))
