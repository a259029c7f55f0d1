"""Says what a closed-form head is fitted to: from the labels of examples to numbers, one class for each form of labels.

The forms of tasks with other labels than one for each example are in `fftmoe.tasks`, beside their tasks.

Shape letters: B batch, N items (the examples, or their labelled tokens), C outputs of the head.
"""

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor


class Answers(Protocol):
    """Turns labels into targets, which a head is fitted to by least squares."""

    @property
    def one_each(self) -> bool:
        """Return whether every example is one item, so that the number of items says no more than that of examples."""
        ...

    @property
    def exclusive(self) -> bool:
        """Return whether the targets of an item are 0 and 1, with one 1; others send the sums of their squares."""
        ...

    def items(self, found: Tensor, labels: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return what was found of the items, such as their features [N, ...], and their labels [N, ...].

        Args:
            found: of a batch, [B, ...]. labels: of the same, in the form of the task.
        """
        ...

    def targets(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return the targets of items, float64 [N, C]."""
        ...

    def groups(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return which sums of feature statistics each example is part of, bool [B, G].

        Where a group has few examples, its sum says much about each of them.
        """
        ...


@runtime_checkable
class LabelAnswers(Answers, Protocol):
    """Turns labels into targets of outputs that have probabilities, and so a temperature."""

    def cross_entropy(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the cross-entropy of items, summed, a scalar."""
        ...

    def choices(self, num_outputs: int, /) -> int:
        """Return among how many answers a probability chooses."""
        ...


class EachExample:
    """Makes every example one item."""

    one_each = True

    def items(self, found: Tensor, labels: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return both as they are."""
        return found, labels


class OneLabel(EachExample):
    """Fits the one-hot label of each example."""

    exclusive = True

    def targets(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return 1 for the label and 0 for all others; there may be any number of dimensions in front."""
        return F.one_hot(labels, num_outputs).double()

    def cross_entropy(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the softmax cross-entropy."""
        return F.cross_entropy(outputs_NC, labels, reduction="sum")

    def choices(self, num_outputs: int, /) -> int:
        """Return C."""
        return num_outputs

    def groups(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return the label of each example, [B, C]."""
        return F.one_hot(labels, num_outputs).bool()


ONE_LABEL = OneLabel()
