"""Metrics of a model on held-out examples, for everyone and for each client.

Shape letters: N examples, L strata (the classes, where there are some), K statistics of a task, C clients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import logits, on_device
from fftmoe.data import Examples, evaluation_batches
from fftmoe.rng import numpy_generator
from fftmoe.tasks import Task

BATCH_SIZE = 64
MOST_LOGITS = 2**27  # of a batch, half a GiB: a language model has its whole vocabulary's for every token


@dataclass(frozen=True)
class Tally:
    """What a model does on held-out examples, by stratum.

    Attributes:
        task: whose statistics they are.
        sums: of the examples' statistics, float64 [L, K].
        counts: examples, int64 [L].
    """

    task: Task
    sums: np.ndarray
    counts: np.ndarray

    def metrics(self) -> dict[str, float]:
        """On all examples, by name, the run's metric first."""
        return {name: float(value) for name, value in self.task.metrics(self.sums.sum(0)).items()}

    def by_stratum(self) -> np.ndarray:
        """The run's metric within each stratum, float64 [L]; NaN for one without examples."""
        return self.task.metrics(self.sums)[self.task.metric]

    def on_mixes(self, shares_CL: np.ndarray) -> np.ndarray:
        """The run's metric on data that is mixed as each client's own is, float64 [C].

        Args:
            shares_CL: of the strata among each client's training examples. Strata without held-out examples are left
                out; a client with no other has NaN.
        """
        known = self.counts > 0
        means_LK = self.sums[known] / self.counts[known, None]
        return self.task.metrics(shares_CL[:, known] @ means_LK)[self.task.metric]


def holdout(examples: Examples, size: int | None, seed: int) -> Examples:
    """A fixed random subset of `size` examples; all examples when `size` is None or larger than their number."""
    if size is None or size >= len(examples):
        return examples
    rows = numpy_generator(seed, "holdout").choice(len(examples), size, replace=False)
    return examples.select(np.sort(rows))


@torch.inference_mode()
def tally(model: Any, task: Task, examples: Examples, num_strata: int) -> Tally:
    """The task's statistics of this model; L is `num_strata`."""
    sums, counts = 0.0, torch.bincount(examples.labels, minlength=num_strata).numpy()
    for rows in evaluation_batches(examples, batch_size_for(model, task, examples)):
        batch = on_device(model, examples.batch(rows))
        found_BK = task.statistics(logits(model, batch).float(), batch).cpu().numpy()
        own = np.zeros((num_strata, found_BK.shape[1]))
        np.add.at(own, examples.labels[rows].numpy(), found_BK)
        sums = sums + own
    return Tally(task, np.asarray(sums), counts)


def batch_size_for(model: Any, task: Task, examples: Examples) -> int:
    """Examples at once, fewer where the task judges every token and the vocabulary is large."""
    if not task.by_token:
        return BATCH_SIZE
    # As much as a language model gives; others give less.
    longest, vocabulary = int(examples.lengths.max()), int(model.config.get_text_config().vocab_size)
    return max(1, min(BATCH_SIZE, MOST_LOGITS // (longest * vocabulary)))


@torch.inference_mode()
def predict_logits(model: Any, examples: Examples, batch_size: int = BATCH_SIZE) -> Tensor:
    """Logits of every example, float32 [N, C] of C classes, in the order of `examples`."""
    parts, order = [], []
    for rows in evaluation_batches(examples, batch_size):
        parts.append(logits(model, on_device(model, examples.batch(rows))).float().cpu())
        order.append(rows)
    flat = torch.cat(parts)
    result = torch.empty_like(flat)
    result[torch.cat(order)] = flat
    return result


def accuracy(model: Any, examples: Examples) -> float:
    """Share of examples whose highest logit is their label."""
    return float((predict_logits(model, examples).argmax(1) == examples.labels).double().mean())


def client_metrics(model: Any, own_labels: Tensor, task: Task, examples: Examples) -> dict[str, float]:
    """What a client that trained alone says of its model: on all of `examples`, and on its own mix of strata.

    Args:
        own_labels: the client's strata, int64 [N]; where `examples` has none of them there is no metric of its own.
    """
    num_strata = 1 + int(max(own_labels.max(), examples.labels.max()))
    found = tally(model, task, examples, num_strata)
    shares = torch.bincount(own_labels, minlength=num_strata).double().numpy() / len(own_labels)
    (own,) = found.on_mixes(shares[None])
    metrics = {f"holdout_{task.metric}": found.metrics()[task.metric]}
    return metrics if np.isnan(own) else {**metrics, f"own_{task.metric}": float(own)}


def mean_and_worst_decile(values: Sequence[float] | np.ndarray, higher_is_better: bool = True) -> dict[str, float]:
    """Mean over clients, and mean over the worst tenth of them (at least one)."""
    ordered = np.sort(np.asarray(values, dtype=float)[~np.isnan(values)])
    worst = (ordered if higher_is_better else ordered[::-1])[: max(1, len(ordered) // 10)]
    return {"mean": float(ordered.mean()), "worst_decile": float(worst.mean())}
