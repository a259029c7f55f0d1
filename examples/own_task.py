"""Add your own task, judged by the accuracy of the average class.

python examples/own_task.py [recipe] [section.key=value ...]
"""

from collections.abc import Mapping
from sys import argv
from tempfile import mkdtemp

import numpy as np
import torch

import fftmoe
from fftmoe.tasks import TASKS, Classification, no_share


class AverageClass(Classification):
    """A `Task` (`fftmoe/tasks/base.py`): the loss is that of the recipe's head, the metric its own."""

    metric, label_parts, share = "balanced_accuracy", 2, no_share  # 2 parts with C numbers; a mean of shares is none

    def statistics(self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Float64 [B, 2C]: the right answers of each of C classes, and its examples."""
        is_BC = torch.eye(logits.shape[1], dtype=torch.float64)[labels := batch["labels"]]
        return torch.cat([is_BC * (logits.argmax(1) == labels)[:, None], is_BC], 1)

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each count, [2C]."""
        return np.zeros(2 * num_outputs), np.full(2 * num_outputs, float(num_rows))

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metric from sums or means of the statistics, [..., 2C]."""
        right, rows = np.split(sums, 2, axis=-1)
        return {self.metric: np.nanmean(right / np.where(rows > 0, rows, np.nan), axis=-1)}


TASKS["sequence-classification"] = AverageClass  # outside the `if`, because worker processes import the script
if __name__ == "__main__":
    result = fftmoe.run((argv[1:] or ["quickstart"])[0], mkdtemp() + "/run", argv[2:] or ["federation.rounds=2"])
    print(f"accuracy of the average class: {result.summary['balanced_accuracy']:.3f}")
