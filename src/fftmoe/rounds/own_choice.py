"""Chooses how a client uses the common model's outputs, by rows of its own whose labels it knows.

It may leave them as they are, correct them for its labels (`fftmoe.head.prior`), and add a private part to a
closed-form head (`fftmoe.head.private`). Rows that it has set aside judge; where it has none, each of its rows is
judged by what the others give.

Shape letters: N items (the examples, or their labelled tokens), F features, C outputs, D = F + 1.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fftmoe.evaluate import HEAD_INPUTS
from fftmoe.head import (
    RIDGES,
    LabelAnswers,
    LabelTotals,
    PrivateFit,
    best_strength,
    prior_shift,
    smoothed_shares,
    strength_losses,
)

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
        margin: by how much the mean cross-entropy of the rows that judge is below that of the common model, nats.
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


def best_choice(
    fitted: Items | None,
    judging: Items | None,
    own: LabelTotals,
    whole_C: Tensor,
    temperature: float,
    answers: LabelAnswers,
) -> Choice:
    """Return what gives the smallest cross-entropy on the rows that judge; of equal choices that without a part.

    Args:
        fitted: the items that the client trains on; None where its head can have no private part.
        judging: items that it has set aside; None to judge each of those fitted by the others.
        own: the labels of what it trains on. whole_C: everyone's shares of them, float64 [C].
        temperature: by which outputs of the head were divided.
    """
    judged = fitted if judging is None else judging
    assert judged is not None, "a client has rows"
    known = own.without_each(judged.labels, answers) if judging is None else own
    shift = prior_shift(smoothed_shares(known, whole_C, answers), whole_C, answers)
    fit = None if fitted is None or not fitted.features.shape[1] else _fit(fitted, temperature, answers)

    def losses(ridge: float | None) -> Tensor:
        logits_NC = judged.logits.double()
        if fit is not None and ridge is not None:
            outside = fit.left_out(ridge) if judging is None else added_by(fit.part(ridge), judging.features.double())
            logits_NC = logits_NC + outside
        return strength_losses(logits_NC, judged.labels, shift, answers).mean(1)

    found = {ridge: losses(ridge) for ridge in (None, *(() if fit is None else RIDGES))}
    ridge = min(found, key=lambda ridge: float(found[ridge].min()))
    part = None if fit is None or ridge is None else fit.part(ridge)
    common = answers.cross_entropies(judged.logits.double(), judged.labels).mean()
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
