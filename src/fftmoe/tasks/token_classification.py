"""A label for each token that has one, such as a word's first: names, parts of speech.

Shape letters: B batch, S sequence, C classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.tasks.base import ratio
from fftmoe.tasks.f1 import class_f1, macro


class PerToken:
    """Softmax cross-entropy: the mean over the labelled tokens of the batch."""

    def loss(self, logits_BSC: Tensor, labels_BS: Tensor, /) -> Tensor:
        """Of tokens whose label is not -100."""
        return F.cross_entropy(logits_BSC.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORED)


class TokenClassification:
    """Accuracy over labelled tokens; beside it the F1 of each class, averaged (`macro_f1`)."""

    metric = "accuracy"
    higher_is_better = True
    bounds = (0.0, 1.0)
    by_token = True

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, 3C]: of each class how many tokens were rightly said to be it, said to be it, and are it."""
        labels_BS, num_classes = batch["labels"], logits.shape[-1]
        there_BS1 = (labels_BS != IGNORED)[..., None]
        said_BSC = F.one_hot(logits.argmax(-1), num_classes) * there_BS1
        are_BSC = F.one_hot(labels_BS.clamp_min(0), num_classes) * there_BS1
        return torch.cat([(said_BSC * are_BSC).sum(1), said_BSC.sum(1), are_BSC.sum(1)], 1).double()

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Of sums [..., 3C]."""
        hits, said, are = np.split(sums, 3, axis=-1)
        return {"accuracy": ratio(hits.sum(-1), are.sum(-1)), "macro_f1": macro(class_f1(hits, said, are))}
