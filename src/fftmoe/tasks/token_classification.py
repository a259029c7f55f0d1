"""Judges token classification: a label for each labelled token, such as the first token of a word (names, parts of
speech).

Shape letters: B batch, S sequence, C classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.head import OneLabel
from fftmoe.tasks.base import mean_over_tokens, ratio, unless_broken
from fftmoe.tasks.f1 import class_f1, macro
from fftmoe.tasks.share import CountedShare


class LabelOfTokens(OneLabel):
    """Fits the one-hot label of each labelled token (`fftmoe.head.Answers`)."""

    one_each = False

    def items(self, found: Tensor, labels: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return both of the tokens whose label is not -100."""
        labelled_BS = labels != IGNORED
        return found[labelled_BS], labels[labelled_BS]

    def groups(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return which labels the tokens of an example have, [B, C]."""
        return F.one_hot(labels.clamp_min(0), num_outputs).bool().logical_and((labels != IGNORED)[..., None]).any(1)


class PerToken:
    """Computes the softmax cross-entropy: the mean over the labelled tokens of the batch."""

    next_token = False

    def loss(self, logits_BSC: Tensor, labels_BS: Tensor, /) -> Tensor:
        """Return the mean over the tokens whose label is not -100; 0 if the batch has none."""
        return mean_over_tokens(logits_BSC, labels_BS)

    def items(self, labels_BS: Tensor, /) -> int:
        """Return the number of tokens that have a loss."""
        return int((labels_BS != IGNORED).sum())


class TokenClassification:
    """Measures accuracy over the labelled tokens, and the mean of the classes' F1 (`macro_f1`)."""

    metric = "accuracy"
    higher_is_better = True
    bounds = (0.0, 1.0)
    next_token = False
    by_token = True
    exclusive = True
    label_parts = 3

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 3C]: for each class the number of tokens that are hits, predicted, and actual."""
        labels_BS, num_classes = batch["labels"], logits.shape[-1]
        labelled_BS1 = (labels_BS != IGNORED)[..., None]
        predicted_BSC = F.one_hot(logits.argmax(-1), num_classes) * labelled_BS1
        actual_BSC = F.one_hot(labels_BS.clamp_min(0), num_classes) * labelled_BS1
        hits_BSC = predicted_BSC * actual_BSC
        sound_BS = logits.isfinite().all(-1) | (labels_BS == IGNORED)
        counts = torch.cat([hits_BSC.sum(1), predicted_BSC.sum(1), actual_BSC.sum(1)], 1).double()
        return unless_broken(counts, sound_BS.all(1))

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return [N, C] each, of the labelled tokens: their labels, and those of their highest logits."""
        labels_BS, num_classes = batch["labels"], logits.shape[-1]
        judged_BS = labels_BS != IGNORED
        predicted_N = logits.argmax(-1)[judged_BS]
        return F.one_hot(labels_BS[judged_BS], num_classes).bool(), F.one_hot(predicted_N, num_classes).bool()

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits, [3C] each."""
        most = np.full(3 * num_outputs, float(num_rows * most_tokens))
        return np.zeros_like(most), most

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics from sums [..., 3C]."""
        hits, predicted, actual = np.split(sums, 3, axis=-1)
        return {
            "accuracy": ratio(hits.sum(-1), actual.sum(-1)),
            "macro_f1": macro(class_f1(hits, predicted, actual)),
        }

    def share(self, sums: np.ndarray, /) -> CountedShare:
        """Return the metric as a share of the labelled tokens."""
        return CountedShare(self.metrics(sums)[self.metric], np.split(sums, 3, axis=-1)[2].sum(-1))
