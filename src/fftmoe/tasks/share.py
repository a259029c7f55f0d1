"""Computes how sure a metric is that says which share of counted items is right.

The items of one example may stand or fall together, such as the tokens of a text. So no more of them count than there
are examples, or, where examples have unlike numbers of items, than as many of equal size would say as much as these
(`worth`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WILSON_Z = 1.959964  # standard deviations, of 95 %


def _itself(share: float) -> float:
    return share


@dataclass(frozen=True)
class CountedShare:
    """Holds a metric as a share of counted items, or as what such a share is carried to.

    Attributes:
        value: the share, float64 [...]; NaN where no item was counted.
        items: their number, float64 [...].
        metric: from a share to the metric, increasing.
    """

    value: np.ndarray
    items: np.ndarray
    metric: Callable[[float], float] = _itself

    def interval(self, examples: float) -> tuple[float, float]:
        """Return the 95 % interval of the metric, ends included: Wilson's of the share, carried to the metric.

        Args:
            examples: that the items are of; no more items count (`worth`). Without items it is everything possible.
        """
        low, high = wilson(*self._counted(examples))
        return self.metric(low), self.metric(high)

    def standard_error(self, examples: float) -> float:
        """Return half the distance between the metrics of the shares that lie a standard error below and above.

        The share is that with an item that is right and one that is wrong added. Without these two (Laplace's rule of
        succession), 12 of 12 right would have no error.

        Args:
            examples: see `interval`.
        """
        value, items = self._counted(examples)
        added = (value * items + 1) / (items + 2)
        error = math.sqrt(added * (1 - added) / (items + 2))  # at most `added`, and at most 1 - `added`
        return (self.metric(added + error) - self.metric(added - error)) / 2

    def _counted(self, examples: float) -> tuple[float, float]:
        """Return the share and the number of items that count."""
        items = min(float(self.items), examples)
        return float(self.value) if items else 1.0, items


def no_share(task: object, sums: np.ndarray, /) -> None:
    """Return None: the metric of this task is no share of items (`fftmoe.tasks.Task.share`)."""


def wilson(value: float, num_items: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval (1927) of a share of this many items, ends included; `value` lies within.

    It says something where all items are right: of n, a share of n / (n + 3.84) at least. Brown, Cai and DasGupta
    (2001) recommend it for few. Without items it is 0 to 1.
    """
    middle = value * num_items + WILSON_Z**2 / 2
    reach = WILSON_Z * math.sqrt(max(0.0, num_items * value * (1 - value)) + WILSON_Z**2 / 4)
    low, high = ((middle + side * reach) / (num_items + WILSON_Z**2) for side in (-1, 1))
    return max(0.0, min(low, value)), min(1.0, max(high, value))


def worth(items_N: np.ndarray) -> float:
    """Return how many examples of equal size say as much as these of this many items each, which stand or fall
    together.

    It is (sum of the items)^2 / sum of their squares (Kish, 1965), at most the number of examples with an item; 0
    without any.
    """
    squares = float((items_N**2).sum())
    return float(items_N.sum()) ** 2 / squares if squares else 0.0
