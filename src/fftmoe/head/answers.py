"""Says what a closed-form head is fitted to: from the labels of examples to numbers, one class for each form of labels.

The forms of tasks with other labels than one for each example are in `fftmoe.tasks`, beside their tasks.

Shape letters: B batch, N items (the examples, or their labelled tokens), C outputs of the head.
"""

from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

LEAST_SHARE = 1e-9  # a smaller share counts as this: a label that nobody has seen is improbable, and not impossible


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

    def cross_entropies(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the cross-entropy of each item, [N]."""
        ...

    def choices(self, num_outputs: int, /) -> int:
        """Return among how many answers a probability chooses."""
        ...

    def probabilities(self, logits: Tensor, /) -> Tensor:
        """Return the probability of each label, [..., C], from logits of the same shape."""
        ...

    def logits_of(self, shares: Tensor, /) -> Tensor:
        """Return the logits of a model that knows nothing but these shares of the labels, [..., C]: the inverse of
        `probabilities`, finite also where a share is 0.
        """
        ...

    def shares(self, mean_targets: Tensor, /) -> Tensor:
        """Return the share of the items that has each label, [..., C], from the mean of their targets."""
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

    def cross_entropies(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the softmax cross-entropy."""
        return F.cross_entropy(outputs_NC, labels, reduction="none")

    def choices(self, num_outputs: int, /) -> int:
        """Return C."""
        return num_outputs

    def probabilities(self, logits: Tensor, /) -> Tensor:
        """Return the softmax."""
        return logits.softmax(-1)

    def logits_of(self, shares: Tensor, /) -> Tensor:
        """Return the logarithms."""
        return shares.clamp_min(LEAST_SHARE).log()

    def shares(self, mean_targets: Tensor, /) -> Tensor:
        """Return them as they are."""
        return mean_targets

    def groups(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return the label of each example, [B, C]."""
        return F.one_hot(labels, num_outputs).bool()


class AgainstOthers(OneLabel):
    """Fits the same; each output says the odds of its label against all others, as those of a one-vs-all head do."""

    def cross_entropies(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the binary cross-entropy of each label against all others, summed over the labels."""
        targets = self.targets(labels, outputs_NC.shape[1]).to(outputs_NC)
        return F.binary_cross_entropy_with_logits(outputs_NC, targets, reduction="none").sum(1)

    def probabilities(self, logits: Tensor, /) -> Tensor:
        """Return the sigmoid of each."""
        return logits.sigmoid()

    def logits_of(self, shares: Tensor, /) -> Tensor:
        """Return the logarithms of the odds."""
        return shares.logit(LEAST_SHARE)


ONE_LABEL = OneLabel()
