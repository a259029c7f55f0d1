"""Judges multi-label classification: any number of C labels for each text.

Shape letters: B batch, C labels.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.head import LEAST_SHARE, EachExample
from fftmoe.tasks.base import counted, ratio, unless_broken
from fftmoe.tasks.f1 import class_f1, f1_of_overlap, macro, none_to_find
from fftmoe.tasks.share import CountedShare


class SeveralLabels(EachExample):
    """Fits 1 to each label that an example has and -1 to every other (`fftmoe.head.Answers`)."""

    exclusive = False

    def targets(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return 1 and -1, float64 [N, C]."""
        return 2 * labels.double() - 1

    def cross_entropies(self, outputs_NC: Tensor, labels: Tensor, /) -> Tensor:
        """Return the binary cross-entropy, summed over the labels."""
        return F.binary_cross_entropy_with_logits(outputs_NC, labels.to(outputs_NC), reduction="none").sum(1)

    def choices(self, num_outputs: int, /) -> int:
        """Return 2: an example has a label or not."""
        return 2

    def probabilities(self, logits: Tensor, /) -> Tensor:
        """Return the sigmoid of each."""
        return logits.sigmoid()

    def logits_of(self, shares: Tensor, /) -> Tensor:
        """Return the logarithms of the odds."""
        return shares.logit(LEAST_SHARE)

    def shares(self, mean_targets: Tensor, /) -> Tensor:
        """Return the share of 1 among targets of 1 and -1."""
        return (1 + mean_targets) / 2

    def groups(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return which labels an example has and which not, [B, 2C].

        Whoever knows the sum over all examples and the one over those with a label has that over those without.
        """
        has_BC = labels > 0
        return torch.cat([has_BC, ~has_BC], 1)


class EachLabel:
    """Computes the binary cross-entropy: L = mean_b sum_c BCE(sigmoid(z_bc), y_bc), as for a one-vs-all head."""

    next_token = False

    def loss(self, logits_BC: Tensor, targets_BC: Tensor, /) -> Tensor:
        """Return the sum over the labels, averaged over the batch."""
        return F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").sum(1).mean()

    def items(self, labels: Tensor, /) -> int:
        """Return the number of texts."""
        return len(labels)


class MultiLabel:
    """Measures F1 over all labels of all texts (`f1`, often called micro F1), the mean of the labels' F1, and exact
    matches.

    A label is predicted if its logit is above 0. Where no text has a label and none is predicted, F1 is 1.
    """

    metric = "f1"
    higher_is_better = True
    bounds = (0.0, 1.0)
    next_token = False
    by_token = False
    exclusive = False
    label_parts = 3

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 3C + 2]: for each label if it is a hit, predicted, and actual; if all labels are right; and 1."""
        predicted_BC, actual_BC = (logits > 0).double(), batch["labels"].double()
        exact_B1 = (predicted_BC == actual_BC).all(1, keepdim=True).double()
        parts = [predicted_BC * actual_BC, predicted_BC, actual_BC, exact_B1, torch.ones_like(exact_B1)]
        return unless_broken(torch.cat(parts, 1), logits.isfinite().all(1))

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return [B, C] each: the labels of each example, and those whose logit is above 0."""
        return batch["labels"] > 0, logits > 0

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits, [3C + 2] each."""
        return counted([num_rows] * (3 * num_outputs + 1), num_rows)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics from sums [..., 3C + 2]."""
        hits, predicted, actual = np.split(sums[..., :-2], 3, axis=-1)
        judged = sums[..., -1] > 0
        return {
            "f1": none_to_find(class_f1(hits.sum(-1), predicted.sum(-1), actual.sum(-1)), judged),
            "macro_f1": none_to_find(macro(class_f1(hits, predicted, actual)), judged),
            "exact_match": ratio(sums[..., -2], sums[..., -1]),
        }

    def share(self, sums: np.ndarray, /) -> CountedShare:
        """Return the hits as a share of all labels that a text has or is given; F1 is an increasing function of it.

        Rows without both do not count: where labels are rare, F1 is far less sure than a share of all texts.
        """
        hits, predicted, actual = (part.sum(-1) for part in np.split(sums[..., :-2], 3, axis=-1))
        found_or_missed = predicted + actual - hits
        return CountedShare(ratio(hits, found_or_missed), found_or_missed, f1_of_overlap)
