"""Measures how well the global model answers the rows that the clients have set aside.

The clients run the model on their own rows and send sums of the task's statistics (`client/validation.py`). Nobody else
sees those rows, and no model learns from them.
"""

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

        A metric that is a share of items comes with its standard error. Only sums are known, so items count as if those
        of a row had nothing to do with each other, but no more of them than there are rows.
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
        if not np.isnan(value) and (share := self.task.share(np.asarray(total))) is not None:
            found[VALIDATION_ERROR] = share.standard_error(rows)
        return found
