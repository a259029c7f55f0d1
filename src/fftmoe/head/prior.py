"""Computes how answers change with the shares of labels at the place of use (docs/math.md, Personal answers).

A model that has learned from rows with the label shares pi gives p(c | x) for such rows. Where labels have other shares
q, and the inputs of each label are as they were, Bayes' rule gives p'(c | x) ~ p(c | x) q_c / pi_c (Saerens, Latinne
and Decaestecker, 2002). Of logits z this is an addition, the `prior_shift`:

    z' = z + logits_of(q) - logits_of(pi)

Nothing is trained for it and nothing is sent. It needs logits that are calibrated; those of a closed-form head are
divided by its temperature first. Where inputs tell where they come from, the model may know a part of the shares of
their place already. So a client chooses by its own rows which part of the shift it adds (`best_strength`).

Shape letters: N items (the examples, or their labelled tokens), C labels.
"""

from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fftmoe.head.answers import LabelAnswers

PRIOR_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)  # parts of the correction from which a client chooses
SMOOTHING = 1.0  # items with everyone's shares that are added to those of a place
ESTIMATE_STEPS, NEAR = 1000, 1e-8  # of the estimate: most steps, and the change of a share below which it ends


@dataclass(frozen=True)
class LabelTotals:
    """Says how often each label occurs in a set of items.

    Attributes:
        targets: the sum of the items' targets (`Answers.targets`), float64 [C]; [N, C] for N sets.
        items: their number, in each set.
    """

    targets: Tensor
    items: float

    @classmethod
    def of(cls, labels: Tensor, num_outputs: int, answers: LabelAnswers) -> "LabelTotals":
        """Return those of items with these labels, in the form of `answers`."""
        return cls(answers.targets(labels, num_outputs).sum(0), float(len(labels)))

    def __add__(self, other: "LabelTotals") -> "LabelTotals":
        return LabelTotals(self.targets + other.targets, self.items + other.items)

    def without_each(self, labels: Tensor, answers: LabelAnswers) -> "LabelTotals":
        """Return for each of N items, which are counted here, the totals of all others.

        Args:
            labels: of the items, in the form of `answers`.
        """
        own_NC = answers.targets(labels, self.targets.shape[-1])
        return LabelTotals(self.targets - own_NC, self.items - 1)

    def shares(self, answers: LabelAnswers) -> Tensor:
        """Return the share of the items that has each label, float64 [..., C]; there is at least one item."""
        return answers.shares(self.targets / self.items).clamp(0.0, 1.0)


def are_shares(values: Any) -> TypeGuard[list[float]]:
    """Return whether something that was read is a list of shares of labels."""
    return isinstance(values, list) and all(isinstance(value, float) and 0.0 <= value <= 1.0 for value in values)


def smoothed_shares(own: LabelTotals, whole_C: Tensor, answers: LabelAnswers) -> Tensor:
    """Return a place's shares of labels, float64 [..., C], with `SMOOTHING` items of everyone's shares added.

    So a label that the place has not seen yet stays possible there, the more so the fewer rows it has; without any, its
    shares are everyone's.

    Args:
        own: of the place. whole_C: everyone's shares, float64 [C].
    """
    if not own.items:
        return whole_C
    return (own.items * own.shares(answers) + SMOOTHING * whole_C) / (own.items + SMOOTHING)


def prior_shift(shares_C: Tensor, whole_C: Tensor, answers: LabelAnswers) -> Tensor:
    """Return what is added to logits where labels have these shares, float64 [..., C].

    Args:
        shares_C: at the place of use. whole_C: among the rows from which the model has learned. A label that none of
            them has, or that all of them have, stays as the model gives it: nobody has learned when it occurs.
    """
    learned_C = (whole_C > 0) & (whole_C < 1)
    return torch.where(learned_C, answers.logits_of(shares_C) - answers.logits_of(whole_C), 0.0)


def strength_losses(logits_NC: Tensor, labels: Tensor, shift: Tensor, answers: LabelAnswers) -> Tensor:
    """Return the cross-entropy of each item if its logits are corrected with each of `PRIOR_STRENGTHS`, float64 [S, N].

    Args:
        labels: of the items, in the form of `answers`.
        shift: the whole correction, float64 [C], or [N, C] where each item has its own.
    """
    shifted = (logits_NC.double() + strength * shift for strength in PRIOR_STRENGTHS)
    return torch.stack([answers.cross_entropies(logits, labels) for logits in shifted]).double()


def best_strength(scores_S: Tensor) -> float:
    """Return the strength with the smallest cross-entropy; of equal ones the largest."""
    return max(zip((-scores_S).tolist(), PRIOR_STRENGTHS, strict=True))[1]


def estimated_shares(logits_NC: Tensor, whole_C: Tensor, answers: LabelAnswers, smoothing: float = SMOOTHING) -> Tensor:
    """Return the shares of labels among items whose labels nobody knows, float64 [C].

    They are the most probable ones, found by expectation maximisation (Saerens et al., 2002): the shares are the mean
    of the probabilities that the items have with these shares. As in `smoothed_shares`, items of everyone's shares are
    added.

    Args:
        logits_NC: of the items, calibrated for the shares `whole_C`.
        smoothing: how many items are added.
    """
    logits_NC, shares_C, items = logits_NC.double(), whole_C, len(logits_NC)
    for _ in range(ESTIMATE_STEPS):
        found_NC = answers.probabilities(logits_NC + prior_shift(shares_C, whole_C, answers))
        before, shares_C = shares_C, (found_NC.sum(0) + smoothing * whole_C) / (items + smoothing)
        if torch.allclose(before, shares_C, rtol=0.0, atol=NEAR):
            break
    return shares_C
