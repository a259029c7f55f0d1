"""Judges preferences: which of two answers to a prompt is better, learned from pairs without a reward model.

`PAIR_LOSSES` has one row for each loss. The reward of an answer is beta times its log-probability under the model.
Where the loss has a reference, the log-probability under the frozen backbone is subtracted first; where it counts per
token, the result is divided by the number of tokens.

Shape letters: B pairs. The scores of pairs are made by `fftmoe.backbones.pairs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.tasks.base import ratio
from fftmoe.tasks.causal_lm import LARGEST_EXPONENT
from fftmoe.tasks.share import CountedShare

ROUNDING_OF_SCORES = 1e-3  # nats by which the log-probability of a text may differ between two batches
ALMOST_CERTAIN = -1e-6  # the largest mean log-probability whose odds are finite in float32


class PairLossKind(NamedTuple):
    """Describes a loss of pairs.

    Attributes:
        loss: `(chosen, rejected, beta, margin)` to the losses, each [B]; the first two are log-probabilities, less
            those of the reference if there is one.
        has_reference: the log-probabilities of the frozen backbone are subtracted.
        per_token: log-probabilities are divided by the number of the answer's tokens.
        imitates: the mean negative log-likelihood of the tokens of the chosen answers is added.
    """

    loss: Callable[[Tensor, Tensor, float, float], Tensor]
    has_reference: bool
    per_token: bool
    imitates: bool


def _logistic(chosen_B: Tensor, rejected_B: Tensor, beta: float, margin: float) -> Tensor:
    return -F.logsigmoid(beta * (chosen_B - rejected_B) - margin)


def _squared(chosen_B: Tensor, rejected_B: Tensor, beta: float, margin: float) -> Tensor:
    return (chosen_B - rejected_B - 1 / (2 * beta)) ** 2


def _odds_ratio(chosen_B: Tensor, rejected_B: Tensor, beta: float, margin: float) -> Tensor:
    chosen_B, rejected_B = chosen_B.clamp(max=ALMOST_CERTAIN), rejected_B.clamp(max=ALMOST_CERTAIN)
    odds_B = (chosen_B - rejected_B) - (torch.log1p(-chosen_B.exp()) - torch.log1p(-rejected_B.exp()))
    return -beta * F.logsigmoid(odds_B)


PAIR_LOSSES: Mapping[str, PairLossKind] = {
    "dpo": PairLossKind(_logistic, has_reference=True, per_token=False, imitates=False),
    "ipo": PairLossKind(_squared, has_reference=True, per_token=True, imitates=False),
    "cpo": PairLossKind(_logistic, has_reference=False, per_token=False, imitates=True),
    "simpo": PairLossKind(_logistic, has_reference=False, per_token=True, imitates=False),
    "orpo": PairLossKind(_odds_ratio, has_reference=False, per_token=True, imitates=True),
}
"""By name: DPO (arXiv 2305.18290), IPO (2310.12036), CPO (2401.08417), SimPO (2405.14734) and ORPO (2403.07691)."""


@dataclass(frozen=True)
class PairLoss:
    """Computes the mean loss of pairs, and what it adds for the chosen answers.

    Attributes:
        kind: a name in `PAIR_LOSSES`. beta: the strength.
        margin: by which the rewards of a pair shall differ, for `simpo`.
    """

    kind: str = "dpo"
    beta: float = 0.1
    margin: float = 0.0

    next_token = True

    @property
    def has_reference(self) -> bool:
        """Return whether it reads the log-probabilities of the frozen backbone."""
        return PAIR_LOSSES[self.kind].has_reference

    def loss(self, scores_B23: Tensor, labels: Tensor, /) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            scores_B23: float32, for the chosen and the rejected answer its log-probability, that under the reference,
                and the number of its tokens.
            labels: not read.
        """
        found = self.pairs(scores_B23).mean()
        if not PAIR_LOSSES[self.kind].imitates:
            return found
        return found - scores_B23[:, 0, 0].sum() / scores_B23[:, 0, 2].sum().clamp_min(1)

    def items(self, labels: Tensor, /) -> int:
        """Return the number of texts, two for each pair; recipes refuse parts of a step if a mean
        over tokens is added.
        """
        return len(labels)

    def pairs(self, scores_B23: Tensor) -> Tensor:
        """Return the losses of pairs [B], without what is added for the chosen answers."""
        chosen_B, rejected_B = self.log_ratios(scores_B23).unbind(1)
        return PAIR_LOSSES[self.kind].loss(chosen_B, rejected_B, self.beta, self.margin)

    def log_ratios(self, scores_B23: Tensor) -> Tensor:
        """Return the rewards of both answers before beta, [B, 2]."""
        kind, (policy_B2, reference_B2, tokens_B2) = PAIR_LOSSES[self.kind], scores_B23.unbind(2)
        ratios_B2 = policy_B2 - reference_B2 if kind.has_reference else policy_B2
        return ratios_B2 / tokens_B2.clamp_min(1) if kind.per_token else ratios_B2


@dataclass(frozen=True)
class Preference:
    """Measures how often the chosen answer has the larger reward, by how much on average, and the loss.

    A pair counts as half where the model says of both answers what the reference says, up to rounding: before training
    that is every pair of a loss with a reference. A pair of equal answers is not judged.
    """

    objective: PairLoss = field(default_factory=PairLoss)

    metric = "preference_accuracy"
    higher_is_better = True
    bounds = (0.0, 1.0)
    next_token = True
    by_token = True  # its model answers for every token, from which the scores of answers are made
    exclusive = True
    label_parts = 0

    def statistics(self, scores_B23: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 6]: right, reward margin, loss, loss of the chosen tokens, their number, and 1;
        zeros if not judged.
        """
        scores = scores_B23.double()
        chosen_BS, rejected_BS = batch["labels"].chunk(2)
        judged_B = (chosen_BS != rejected_BS).any(1)
        ratios_B2 = self.objective.log_ratios(scores)
        gap_B = ratios_B2[:, 0] - ratios_B2[:, 1]
        right_B = torch.where((gap_B == 0) | self._unmoved(scores), 0.5, (gap_B > 0).double())
        found_B6 = torch.stack(
            [
                right_B,
                self.objective.beta * gap_B,
                self.objective.pairs(scores),
                -scores[:, 0, 0],
                scores[:, 0, 2],
                torch.ones_like(gap_B),
            ],
            1,
        )
        found_B6 = torch.where(scores.isfinite().all((1, 2))[:, None], found_B6, torch.nan)
        return torch.where(judged_B[:, None], found_B6, 0.0)

    def _unmoved(self, scores_B23: Tensor) -> Tensor:
        """Return where the model and the reference say the same of both answers, bool [B]."""
        same_B = ((scores_B23[..., 0] - scores_B23[..., 1]).abs() < ROUNDING_OF_SCORES).all(1)
        return same_B if self.objective.has_reference else torch.zeros_like(same_B)

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Return None: an answer is no label."""

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits, [6] each; a token's loss is at most `LARGEST_EXPONENT` nats."""
        nats = LARGEST_EXPONENT * num_rows * most_tokens
        gap = 2 * nats  # of the log-probabilities of both answers under the model and the reference
        # An odds ratio adds up to log(1e6) for an answer that is almost certain.
        pulled = self.objective.beta * (gap + 15 * num_rows) + num_rows * (self.objective.margin + 1)
        loss = max(pulled, (gap + num_rows / (2 * self.objective.beta)) ** 2) if self._is_squared else pulled
        least = np.array([0.0, -pulled, 0.0, 0.0, 0.0, 0.0])
        return least, np.array([num_rows, pulled, loss, nats, num_rows * most_tokens, num_rows], dtype=np.float64)

    @property
    def _is_squared(self) -> bool:
        return PAIR_LOSSES[self.objective.kind].loss is _squared

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics from sums [..., 6]."""
        right, margin, loss, nats, tokens, pairs = np.moveaxis(sums, -1, 0)
        imitated = ratio(nats, tokens) if PAIR_LOSSES[self.objective.kind].imitates else 0.0
        return {
            self.metric: ratio(right, pairs),
            "reward_margin": ratio(margin, pairs),
            "loss": ratio(loss, pairs) + imitated,
        }

    def share(self, sums: np.ndarray, /) -> CountedShare:
        """Return the metric as a share of the judged pairs."""
        return CountedShare(self.metrics(sums)[self.metric], sums[..., 5])
