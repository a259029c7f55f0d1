"""Any number of C labels for each text.

Shape letters: B batch, C labels.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.tasks.base import ratio
from fftmoe.tasks.f1 import class_f1, macro


class EachLabel:
    """Binary cross-entropy: L = mean_b sum_c BCE(sigmoid(z_bc), y_bc), as of a one-vs-all head."""

    def loss(self, logits_BC: Tensor, targets_BC: Tensor, /) -> Tensor:
        """The sum over the labels, mean over the batch."""
        return F.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").sum(1).mean()


class MultiLabel:
    """F1 over all labels of all texts (`f1`, often called micro); each label's averaged; whole sets that are right.

    A label is said to be there where its logit is above 0.
    """

    metric = "f1"
    higher_is_better = True
    bounds = (0.0, 1.0)
    by_token = False

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, 3C + 2]: by label whether it was rightly said, said, and is there; whether all are right; and 1."""
        said_BC, are_BC = (logits > 0).double(), batch["labels"].double()
        whole_B1 = (said_BC == are_BC).all(1, keepdim=True).double()
        return torch.cat([said_BC * are_BC, said_BC, are_BC, whole_B1, torch.ones_like(whole_B1)], 1)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Of sums [..., 3C + 2]."""
        hits, said, are = np.split(sums[..., :-2], 3, axis=-1)
        return {
            "f1": class_f1(hits.sum(-1), said.sum(-1), are.sum(-1)),
            "macro_f1": macro(class_f1(hits, said, are)),
            "exact_match": ratio(sums[..., -2], sums[..., -1]),
        }
