"""How logits become a loss for classification: one small class per kind of head.

Shape letters: B batch, C classes.
"""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean


@runtime_checkable
class Head(Protocol):
    """What training needs to know of a classification head; its weights belong to the model."""

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The mean loss of a batch with int64 labels, a scalar."""
        ...

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The loss of each example [B]; any number of dimensions in front."""
        ...

    def init_bias(self, num_labels: int) -> float:
        """The bias that every class starts with."""
        ...

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """What the logits say of the classes: numbers that sum to 1; any number of dimensions in front."""
        ...


class Averaged:
    """Softmax cross-entropy: L = mean_b -log softmax(z_b)[y_b]. Its value for equal logits is log C.

    The classes share one normaliser, so a client pushes down every class that it never sees; under label skew
    these pushes are what federated averaging mixes.
    """

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The mean over the batch."""
        return F.cross_entropy(logits_BC, labels_B)

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Of each example."""
        flat = F.cross_entropy(logits_BC.flatten(0, -2), labels_B.flatten(), reduction="none")
        return flat.view_as(labels_B)

    def init_bias(self, num_labels: int) -> float:
        """0: softmax of equal logits already is the prior 1/C."""
        return 0.0

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Their softmax."""
        return logits_BC.softmax(-1)


class OneVsAll:
    """Each class is told from all others: L = mean_b sum_c BCE(sigmoid(z_bc), [y_b = c]).

    One row's logit does not appear in another row's loss, so rows of different clients can be averaged.
    """

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The sum over the classes, mean over the batch."""
        return self.losses(logits_BC, labels_B).mean()

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The sum over the classes, of each example."""
        targets_BC = F.one_hot(labels_B, logits_BC.shape[-1]).to(logits_BC)
        losses_BC = F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none")
        return losses_BC.sum(-1)

    def init_bias(self, num_labels: int) -> float:
        """-log(C - 1): sigmoid of it is 1/C, so an untrained row predicts the prior."""
        if num_labels < 2:
            raise InputError(f"a one-vs-all head needs at least 2 labels, got {num_labels}")
        return -math.log(num_labels - 1)

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """Their softmax, as classes exclude each other where a label is asked for."""
        return logits_BC.softmax(-1)


class LeastSquares:
    """The squared distance to the one-hot label: L = strength * mean_b |z_b - onehot(y_b)|^2.

    It is the loss whose minimiser over the head the closed form gives, and its gradient vanishes once a label is
    met: a client with one class stops pushing, where cross-entropy never does.
    """

    def __init__(self, strength: float = 10.0) -> None:
        self.strength = strength

    def loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The sum over the classes, mean over the batch, times the strength."""
        return self.losses(logits_BC, labels_B).mean()

    def losses(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """The sum over the classes, times the strength, of each example."""
        targets_BC = F.one_hot(labels_B, logits_BC.shape[-1]).to(logits_BC)
        return self.strength * (logits_BC - targets_BC).square().sum(-1)

    def init_bias(self, num_labels: int) -> float:
        """0; the first solution replaces it."""
        return 0.0

    def probabilities(self, logits_BC: Tensor) -> Tensor:
        """The logits themselves, which least squares fits to E[onehot(y) | x]; cut off below 0 and made to sum to 1.

        As in least-squares probabilistic classification (Sugiyama, 2010). A softmax of numbers between 0 and 1 would
        be nearly flat. Where no logit is above 0 all classes are alike.
        """
        positive_BC = logits_BC.clamp_min(1e-9)
        return positive_BC / positive_BC.sum(-1, keepdim=True)


HEADS: dict[str, Callable[[], Head]] = {
    "averaged": Averaged,
    "one-vs-all": OneVsAll,
    "closed-form": LeastSquares,
}


def make_head(kind: str) -> Head:
    """The head named `kind`.

    Raises:
        InputError: no such head.
    """
    if kind not in HEADS:
        raise InputError(f"unknown head {kind!r}{did_you_mean(kind, HEADS)}")
    return HEADS[kind]()
