"""Turns the outputs of a head into a loss: one small class for each kind of head.

Shape letters: B batch, C classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.head.answers import ONE_LABEL, Answers


@runtime_checkable
class HeadLoss(Protocol):
    """Computes the loss of one kind of classification head; the weights of the head belong to the model."""

    @property
    def next_token(self) -> bool:
        """Return False: it reads logits (`fftmoe.tasks.Loss`)."""
        ...

    def loss(self, logits_BC: Tensor, labels_B: Tensor, /) -> Tensor:
        """Return the mean loss of a batch with int64 labels, a scalar."""
        ...

    def items(self, labels: Tensor, /) -> int:
        """Return the number of examples (`fftmoe.tasks.Loss`)."""
        ...

    def by_example(self, logits_BC: Tensor, labels_B: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the loss of each example [B], and 1 for each (`fftmoe.tasks.LossByExample`)."""
        ...

    def losses(self, logits_BC: Tensor, labels_B: Tensor, /) -> Tensor:
        """Return the loss of each example [B]; there may be any number of dimensions in front."""
        ...

    def init_bias(self, num_labels: int) -> float:
        """Return the bias that every class starts with."""
        ...

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the probabilities of the classes, which sum to 1; there may be any number of dimensions in front."""
        ...


class _PerExample(ABC):
    """Takes the mean over the examples of a batch."""

    next_token = False

    def items(self, labels: Tensor, /) -> int:
        """Return the number of examples."""
        return len(labels)

    def by_example(self, logits_BC: Tensor, labels_B: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the loss of each example [B], and 1 for each (`fftmoe.tasks.LossByExample`)."""
        found_B = self.losses(logits_BC, labels_B)
        return found_B, torch.ones_like(found_B, dtype=torch.int64)

    @abstractmethod
    def losses(self, logits_BC: Tensor, labels_B: Tensor, /) -> Tensor:
        """Return the loss of each example."""


class Averaged(_PerExample):
    """Computes the softmax cross-entropy: L = mean_b -log softmax(z_b)[y_b]. Its value for equal logits is log C.

    The classes share one normaliser, so a client pushes down every class that it never sees. Under label skew these
    pushes of different clients cancel each other in the average.
    """

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the mean over the batch."""
        return F.cross_entropy(logits_BC, labels_B)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the cross-entropy of each example."""
        flat = F.cross_entropy(logits_BC.flatten(0, -2), labels_B.flatten(), reduction="none")
        return flat.view_as(labels_B)

    def init_bias(self, num_labels: int) -> float:
        """Return 0, because the softmax of equal logits is the prior 1/C."""
        return 0.0

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the softmax of the logits."""
        return logits_BC.softmax(-1)


class OneVsAll(_PerExample):
    """Trains a binary classifier for each class: L = mean_b sum_c BCE(sigmoid(z_bc), [y_b = c]).

    The logit of one row of the head is not part of the loss of another row, so rows of different clients can be
    averaged.
    """

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the sum over the classes, averaged over the batch."""
        return self.losses(logits_BC, labels_B).mean()

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Return the sum over the classes for each example."""
        targets_BC = F.one_hot(labels_B, logits_BC.shape[-1]).to(logits_BC)
        losses_BC = F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none")
        return losses_BC.sum(-1)

    def init_bias(self, num_labels: int) -> float:
        """Return -log(C - 1), whose sigmoid is 1/C: an untrained row predicts the prior."""
        if num_labels < 2:
            raise InputError(f"a one-vs-all head needs at least 2 labels, but the data has {num_labels}")
        return -math.log(num_labels - 1)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the softmax of the logits, because every example has exactly one class."""
        return logits_BC.softmax(-1)


class SquaredDistance:
    """Computes the squared distance to the targets: L = strength * mean_n |z_n - t_n|^2, over the items n of a batch.

    The closed form gives the head that minimises this loss. Its gradient vanishes once the outputs equal the targets,
    so a client with a single class stops pushing; under cross-entropy it never does.

    Args:
        answers: what the items and their targets are; by default one-hot labels.
    """

    next_token = False

    def __init__(self, strength: float = 10.0, answers: Answers = ONE_LABEL) -> None:
        self.answers = answers
        self.strength = strength

    def loss(self, outputs: Tensor, labels: Tensor, /) -> Tensor:
        """Return the sum over the outputs, averaged over the items of the batch, times the strength;
        0 if it has none.
        """
        found_N = self.losses(*self.answers.items(outputs, labels))
        return found_N.mean() if len(found_N) else found_N.sum()

    def losses(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the sum over the outputs, times the strength, for each item;
        there may be any number of dimensions in front.
        """
        targets_NC = self.answers.targets(labels, outputs_NC.shape[-1]).to(outputs_NC)
        return self.strength * (outputs_NC - targets_NC).square().sum(-1)

    def items(self, labels: Tensor, /) -> int:
        """Return the number of items."""
        return len(self.answers.items(labels, labels)[1])


class LeastSquares(SquaredDistance, _PerExample):
    """Computes the squared distance where every example is one item.

    L = strength * mean_b |z_b - t_b|^2; by default t_b is the one-hot label.
    """

    def init_bias(self, num_labels: int) -> float:
        """Return 0; the first closed-form head replaces it."""
        return 0.0

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Return the outputs, which least squares fits to E[onehot(y) | x], cut off below 0 and scaled to the sum 1.

        Where the head has a temperature, a softmax is used in the place of this (`temperature.py`).

        This is least-squares probabilistic classification (Sugiyama, 2010). A softmax of numbers between 0 and 1 would
        be nearly flat. If no logit is above 0, all classes get the same probability.
        """
        positive_BC = logits_BC.clamp_min(1e-9)
        return positive_BC / positive_BC.sum(-1, keepdim=True)


HEADS: dict[str, Callable[[], HeadLoss]] = {
    "averaged": Averaged,
    "one-vs-all": OneVsAll,
    "closed-form": LeastSquares,
}


def make_head(kind: str) -> HeadLoss:
    """Return the loss of the head that recipes call `kind`.

    Raises:
        InputError: there is no such head.
    """
    if kind not in HEADS:
        raise InputError(f"unknown head {kind!r}{did_you_mean(kind, HEADS)}")
    return HEADS[kind]()
