"""Counts how often each label was right, given and predicted: what recall, precision and a confusion matrix are made
from.

Shape letters: N judged items (examples, or the labelled tokens of examples), C labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fftmoe.tasks.base import Task

MOST_CONFUSED = 12  # labels; of more, a matrix is too large to read, and grows with their square


@dataclass(frozen=True)
class LabelCounts:
    """Holds counts of labels over held-out examples, int64 [C] each.

    Attributes:
        actual: items that have the label. predicted: items to which the model gives it. hits: both.
        confusion: items by actual label and predicted label, int64 [C, C]; None where an item may have several labels,
            and for more than `MOST_CONFUSED` labels.
    """

    actual: np.ndarray
    predicted: np.ndarray
    hits: np.ndarray
    confusion: np.ndarray | None = None

    @classmethod
    def of(cls, task: Task, logits: Tensor, batch: Mapping[str, Tensor]) -> "LabelCounts | None":
        """Return the counts of a batch with its `labels`; None for a task without labels.

        Args:
            logits: of the batch, all of them finite where the task judges.
        """
        decisions = task.decisions(logits, batch)
        if decisions is None:
            return None
        actual_NC, predicted_NC = (decided.cpu().numpy().astype(np.int64) for decided in decisions)
        small = task.exclusive and actual_NC.shape[1] <= MOST_CONFUSED
        confusion = actual_NC.T @ predicted_NC if small else None
        return cls(actual_NC.sum(0), predicted_NC.sum(0), (actual_NC * predicted_NC).sum(0), confusion)

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        """Return the counts of both sets of examples together."""
        both = None if self.confusion is None or other.confusion is None else self.confusion + other.confusion
        hits = self.hits + other.hits
        return LabelCounts(self.actual + other.actual, self.predicted + other.predicted, hits, both)

    def values(self) -> dict[str, list]:
        """Return the counts as a summary records them."""
        matrix = {} if self.confusion is None else {"confusion": self.confusion.tolist()}
        return {
            "actual": self.actual.tolist(),
            "predicted": self.predicted.tolist(),
            "hits": self.hits.tolist(),
            **matrix,
        }
