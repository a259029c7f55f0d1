"""Judges classification: one of C labels for each example, a text or an image.
The head brings the loss (`fftmoe.head`).
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.tasks.base import counted, ratio, unless_broken
from fftmoe.tasks.share import CountedShare


class Classification:
    """Measures accuracy: the fraction of examples whose highest logit is that of their label."""

    metric = "accuracy"
    higher_is_better = True
    bounds = (0.0, 1.0)
    next_token = False
    by_token = False
    exclusive = True
    label_parts = 0

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 2]: 1 if the prediction is right, else 0; and 1."""
        right_B = (logits.argmax(1) == batch["labels"]).double()
        return unless_broken(torch.stack([right_B, torch.ones_like(right_B)], 1), logits.isfinite().all(1))

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return [B, C] each: the label of each example, and the one of its highest logit."""
        num_classes = logits.shape[1]
        return F.one_hot(batch["labels"], num_classes).bool(), F.one_hot(logits.argmax(1), num_classes).bool()

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits, [2] each."""
        return counted([num_rows], num_rows)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics from sums [..., 2]."""
        return {"accuracy": ratio(sums[..., 0], sums[..., 1])}

    def share(self, sums: np.ndarray, /) -> CountedShare | None:
        """Return the metric as a share of the examples."""
        return CountedShare(self.metrics(sums)[self.metric], sums[..., 1])
