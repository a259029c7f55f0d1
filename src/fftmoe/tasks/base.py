"""Defines what a task decides: how outputs are judged in training and afterwards.

Rounds, clients and methods use a task through these two protocols only.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.tasks.share import CountedShare

NO_BOUND = 1e15  # the bound of a metric that has none: a model with a larger value has failed


class Loss(Protocol):
    """Computes what local training minimises; every `fftmoe.head.HeadLoss` is one."""

    @property
    def next_token(self) -> bool:
        """Return whether it reads the losses of a language model's tokens, float32 [B, S], and not logits."""
        ...

    def loss(self, outputs: Tensor, labels: Tensor, /) -> Tensor:
        """Return the mean loss of a batch, a scalar, from the model's outputs and the batch's `labels`."""
        ...

    def items(self, labels: Tensor, /) -> int:
        """Return over how many items `loss` is the mean: examples or learned tokens.
        Parts of a batch are weighed by it.
        """
        ...


@runtime_checkable
class LossByExample(Protocol):
    """Is a `Loss` whose mean can be taken over any part of a batch, such as the examples of one of several clients."""

    @property
    def next_token(self) -> bool:
        """See `Loss`."""
        ...

    def by_example(self, outputs: Tensor, labels: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the loss of each example, summed over its items, and the number of its items, [B] each."""
        ...


class Task(Protocol):
    """Measures how well outputs match labels, in numbers that can be added.

    The statistics of an example are K numbers, and the statistics of a set of examples are their sums. All metrics are
    computed from such sums. So one pass over held-out examples, summed by stratum, gives the metrics of a model on
    these examples and on every mix of the strata.
    """

    @property
    def metric(self) -> str:
        """Return the name of the metric by which runs are compared, the first of `metrics`."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Return whether a better model has a higher value of the metric."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the smallest and the largest possible value of the metric."""
        ...

    @property
    def next_token(self) -> bool:
        """Return, as in `Loss`, whether `statistics` reads the losses of tokens, and not logits."""
        ...

    @property
    def by_token(self) -> bool:
        """Return whether every token is judged, and not the example as a whole; logits are then [B, S, ...]."""
        ...

    @property
    def exclusive(self) -> bool:
        """Return whether exactly one of the outputs is right, so that the softmax of the logits gives probabilities."""
        ...

    @property
    def label_parts(self) -> int:
        """Return how many numbers are counted for each label: the statistics begin with as many parts of C numbers
        each.

        The last part says how often each label occurs. 0 for a task that counts nothing by label.
        """
        ...

    def statistics(self, outputs: Tensor, batch: Mapping[str, Tensor], /) -> Tensor:
        """Return the statistics of each example of a batch with its `labels`, float64 [B, K], on the device of the
        outputs.

        An example has a statistic that is not finite if, and only if, an output by which it is judged is not finite.
        """
        ...

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return which labels the judged items of a batch have, and which the model gives them, bool [N, C] each.

        An item is an example, or a labelled token; there are C labels. None for a task without labels.
        """
        ...

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and the largest possible sums of the statistics of `num_rows` examples, float64 [K] each.

        Args:
            num_outputs: of the model. most_tokens: of an example, for tasks that judge every token.
        """
        ...

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics by name, float64 [...] each, from sums or means of statistics, float64 [..., K].

        The run's metric is the first. A metric is NaN where there was nothing to judge.
        """
        ...

    def share(self, sums: np.ndarray, /) -> CountedShare | None:
        """Return the share of items that the run's metric is or follows from, of sums of statistics, float64 [..., K].

        It says how sure the metric is where samples of the examples do not. None for a metric that is no share.
        """
        ...


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotient of the two, float64; NaN where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def counted(most: list[float], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return limits of statistics from 0 to `most`, of which the last one counts the examples and is known."""
    return np.array([*[0.0] * len(most), float(num_rows)]), np.array([*most, float(num_rows)])


def unless_broken(statistics_BK: Tensor, sound_B: Tensor) -> Tensor:
    """Return the statistics, NaN for examples whose logits are not all finite (`sound_B` False):
    those have no prediction.
    """
    return torch.where(sound_B[:, None], statistics_BK, torch.nan)


def mean_over_tokens(logits_BSC: Tensor, labels_BS: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens whose label is not -100, a scalar; 0, with zero gradients,
    if none is.
    """
    sum_ = F.cross_entropy(logits_BSC.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED, reduction="sum")
    return sum_ / (labels_BS != IGNORED).sum().clamp_min(1)
