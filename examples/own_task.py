"""Add your own task: labelled texts, judged by the accuracy of the average class instead of the average text.

    python examples/own_task.py [recipe] [section.key=value ...]

A task is a `Task` of `fftmoe/tasks/base.py`. Plug-ins cannot add one, so this script replaces a row of the table.
"""

import sys
import tempfile
from collections.abc import Mapping

import numpy as np
import torch

import fftmoe
from fftmoe.tasks import TASKS, Classification


class AverageClass(Classification):
    """The loss stays that of the recipe's head; only the metric is another one."""

    metric, label_parts = "balanced_accuracy", 2  # parts with C numbers, of which a site may leave out rare labels

    def statistics(self, logits: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Float64 [B, 2C]: the right answers of each of C classes, and its examples."""
        is_class_BC = torch.eye(logits.shape[1], dtype=torch.float64)[batch["labels"]]
        return torch.cat([is_class_BC * (logits.argmax(1) == batch["labels"])[:, None], is_class_BC], 1)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metric from sums or means of the statistics, [..., 2C]."""
        right, examples = np.split(sums, 2, axis=-1)
        return {self.metric: np.nanmean(right / np.where(examples > 0, examples, np.nan), axis=-1)}


TASKS["sequence-classification"] = AverageClass  # outside the `if`, because worker processes import the script
if __name__ == "__main__":
    recipe, *overrides = sys.argv[1:] or ["quickstart", "federation.rounds=2", "evaluation.local_only=false"]
    with tempfile.TemporaryDirectory() as folder:
        summary = fftmoe.run(recipe, f"{folder}/run", overrides).summary
    print(f"accuracy of the average class: {summary['balanced_accuracy']:.3f}")
