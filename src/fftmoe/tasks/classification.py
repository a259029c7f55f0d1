"""One label of C for each example, a text or an image. The loss is the head's (`fftmoe.head`)."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fftmoe.tasks.base import ratio


class Classification:
    """Accuracy: the share of examples whose highest logit is their label."""

    metric = "accuracy"
    higher_is_better = True
    bounds = (0.0, 1.0)
    by_token = False

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, 2]: whether it is right, and 1."""
        right_B = (logits.argmax(1) == batch["labels"]).double()
        return torch.stack([right_B, torch.ones_like(right_B)], 1)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Of sums [..., 2]."""
        return {"accuracy": ratio(sums[..., 0], sums[..., 1])}
