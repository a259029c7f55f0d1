"""What training and evaluation need to know of a data set; texts, images and cached states all have it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

Rows = Tensor | np.ndarray | Sequence[int]


class Examples(Protocol):
    """N labelled examples from which batches of model inputs are made."""

    def __len__(self) -> int: ...

    @property
    def labels(self) -> Tensor:
        """int64 [N]: the class of each example, or the stratum where there are no classes."""
        ...

    @property
    def lengths(self) -> Tensor:
        """int64 [N], by which examples that cost alike find each other: tokens, or 1 where all are of one size."""
        ...

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """The model's inputs for the examples at `rows`, each [B, ...], and their `labels` as the task has them."""
        ...

    def select(self, rows: Rows, /) -> "Examples":
        """The examples at `rows`, in that order, as a set of its own."""
        ...
