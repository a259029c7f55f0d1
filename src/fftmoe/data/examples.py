"""Defines the interface of a data set to training and evaluation; texts, images and cached states all have it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

Rows = Tensor | np.ndarray | Sequence[int]


class Examples(Protocol):
    """Holds N labelled examples from which batches of model inputs are made."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """Return int64 [N]: the class of each example, or its stratum if there are no classes."""
        ...

    @property
    def lengths(self) -> Tensor:
        """Return int64 [N]: tokens of each example, or 1 if all have one size;
        examples of similar cost share a batch.
        """
        ...

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Return the model's inputs for the examples at `rows`, each [B, ...],
        and their `labels` in the form of the task.
        """
        ...

    def select(self, rows: Rows, /) -> "Examples":
        """Return the examples at `rows`, in that order."""
        ...
