"""What a task decides: how outputs are judged, while training and after it.

Rounds, clients and methods know a task only through these two protocols.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from torch import Tensor


class Loss(Protocol):
    """What local training minimises; every `fftmoe.head.Head` is one."""

    def loss(self, logits: Tensor, labels: Tensor, /) -> Tensor:
        """The mean loss of a batch, a scalar: of what the model gives, and of the batch's `labels`."""
        ...


class Task(Protocol):
    """How well outputs meet labels, in numbers that can be added up.

    An example's statistics are K numbers, and those of a set of examples are their sums. All metrics follow from such
    sums. So one pass over held-out examples, summed by stratum, tells how a model does on them and on any mix of them.

    Attributes:
        metric: the one that a run is told by, the first of `metrics`.
        higher_is_better: whether a better model has a higher one.
        bounds: what the metric is at least and at most.
        by_token: whether every token is judged, and not the example as a whole.
    """

    @property
    def metric(self) -> str:
        """Its name."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Of the metric."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the metric."""
        ...

    @property
    def by_token(self) -> bool:
        """Whether logits are [B, S, ...]."""
        ...

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Float64 [B, K], of a batch with its `labels`, where the logits are."""
        ...

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """By name, the run's metric first: float64 [...] each, from sums or means of statistics, float64 [..., K].

        NaN where nothing was there to be judged.
        """
        ...


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Their quotient; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
