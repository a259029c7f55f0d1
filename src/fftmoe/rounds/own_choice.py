"""Chooses how a client uses the common model's outputs, by rows of its own whose labels it knows.

It may leave them as they are, correct them for its labels (`fftmoe.head.prior`), and add a private part to a
closed-form head (`fftmoe.head.private`). Rows that it has set aside judge, and rows that it trains on, each by what the
others give.

Shape letters: N items (the examples, or their labelled tokens), F features, C outputs, D = F + 1.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fftmoe.evaluate import HEAD_INPUTS
from fftmoe.head import (
    PRIOR_STRENGTHS,
    RIDGES,
    LabelAnswers,
    LabelTotals,
    PrivateFit,
    best_strength,
    prior_shift,
    smoothed_shares,
    strength_losses,
)

LEAST_GAIN = 1e-6  # nats; a private part that gains less is level with none, as far as rounding tells
COMMON, CORRECTED, PRIVATE = "common", "corrected", "private part"  # what a client may choose, as the summary names it


class Items(NamedTuple):
    """Holds a client's items: their logits [N, C], what the head read of them [N, F], of which F may be 0, and their
    labels in the form of the task.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor


class ItemsSeen:
    """Collects the items of examples; `fftmoe.evaluate.tally` shows it the outputs.

    Args:
        temperature: by which outputs are divided.
    """

    def __init__(self, answers: LabelAnswers, temperature: float) -> None:
        self._answers, self._temperature = answers, temperature
        self._parts: list[Items] = []

    def __call__(self, outputs: Tensor, batch: Mapping[str, Tensor], rows: Tensor) -> None:
        """Add a batch."""
        logits = (outputs / self._temperature).cpu()
        read = batch[HEAD_INPUTS].cpu() if HEAD_INPUTS in batch else logits[..., :0]
        found, labels = self._answers.items(torch.cat([logits, read], -1), batch["labels"].cpu())
        logits, read = found.split([logits.shape[-1], read.shape[-1]], 1)
        self._parts.append(Items(logits, read, labels))

    def items(self) -> Items:
        """Return all of them, in the order of the batches."""
        return Items(*map(torch.cat, zip(*self._parts, strict=True)))


class Choice(NamedTuple):
    """Says how a client uses the outputs of the common model.

    Attributes:
        strength: the part of the correction for its labels that it adds.
        part: the private part of its head, which it adds to the logits, float64 [C, D]; None for none.
        margin: by how much the mean cross-entropy of the rows that judge is below that of the common model, nats; of
            two kinds of rows the mean of both.
    """

    strength: float
    part: Tensor | None
    margin: float

    @property
    def name(self) -> str:
        """Return it in a word or two."""
        if self.part is not None:
            return PRIVATE
        return CORRECTED if self.strength > 0 else COMMON


class JudgingItems(NamedTuple):
    """Holds items that judge a choice.

    Attributes:
        shift: the whole correction for the client's labels, float64 [C], or [N, C] where each item has its own.
        fitted: whether a private part is fitted to them, so that each is judged by a part of the others.
    """

    items: Items
    shift: Tensor
    fitted: bool

    def losses(self, fit: PrivateFit | None, ridge: float | None, answers: LabelAnswers) -> Tensor:
        """Return the mean cross-entropy with each of `PRIOR_STRENGTHS`, float64 [S]; without a part if one is None."""
        logits_NC = self.items.logits.double()
        if fit is not None and ridge is not None:
            read = self.items.features.double()
            logits_NC = logits_NC + (fit.left_out(ridge) if self.fitted else added_by(fit.part(ridge), read))
        return strength_losses(logits_NC, self.items.labels, self.shift, answers).mean(1)


def best_choice(
    fitted: Items | None,
    set_aside: Items | None,
    own: LabelTotals,
    whole_C: Tensor,
    temperature: float,
    answers: LabelAnswers,
) -> Choice:
    """Return what gives the smallest cross-entropy on the rows that judge; of equal choices that without a part.

    Both kinds of rows judge with equal weight, whatever their numbers: those set aside are few, and of those that the
    client trains on the common model knows the labels.

    Args:
        fitted: the items that the client trains on, each judged by the others; None where only others judge.
        set_aside: items that it does not train on; None where it has none.
        own: the labels of what it trains on. whole_C: everyone's shares of them, float64 [C].
        temperature: by which outputs of the head were divided.
    """
    fit = None if fitted is None or not fitted.features.shape[1] else _fit(fitted, temperature, answers)

    def shift(known: LabelTotals) -> Tensor:
        return prior_shift(smoothed_shares(known, whole_C, answers), whole_C, answers)

    judges = []
    if fitted is not None:
        judges.append(JudgingItems(fitted, shift(own.without_each(fitted.labels, answers)), fitted=True))
    if set_aside is not None:
        judges.append(JudgingItems(set_aside, shift(own), fitted=False))
    found = {
        ridge: torch.stack([judge.losses(fit, ridge, answers) for judge in judges]).mean(0)
        for ridge in (None, *(() if fit is None else RIDGES))
    }
    ridge = min(found, key=lambda ridge: float(found[ridge].min()))
    if not float(found[None].min() - found[ridge].min()) > LEAST_GAIN:
        ridge = None
    part = None if fit is None or ridge is None else fit.part(ridge)
    common = found[None][PRIOR_STRENGTHS.index(0.0)]
    return Choice(best_strength(found[ridge]), part, float(common - found[ridge].min()))


def added_by(part: Tensor, features: Tensor) -> Tensor:
    """Return what a private part adds to logits, [..., C].

    Args:
        part: [C, D]. features: that the head reads, [..., F].
    """
    return features @ part[:, :-1].T + part[:, -1]


def _fit(items: Items, temperature: float, answers: LabelAnswers) -> PrivateFit:
    """Return the fit of what the head leaves of the targets, in units of logits."""
    num_outputs = items.logits.shape[1]
    residuals_NC = answers.targets(items.labels, num_outputs) / temperature - items.logits.double()
    return PrivateFit.of(items.features, residuals_NC)
