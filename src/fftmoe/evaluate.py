"""Metrics of a model on held-out examples, for everyone and for each client."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import logits, on_device
from fftmoe.data import Examples, evaluation_batches

BATCH_SIZE = 64


@torch.inference_mode()
def predict_logits(model: Any, examples: Examples, batch_size: int = BATCH_SIZE) -> Tensor:
    """Logits of every example, float32 [N, C], in the order of `examples`."""
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


def accuracy_by_class(predicted: Tensor, labels: Tensor, num_labels: int) -> np.ndarray:
    """Accuracy within each class, float64 [C]; NaN for a class without examples."""
    correct = torch.bincount(labels[predicted == labels], minlength=num_labels).numpy()
    total = torch.bincount(labels, minlength=num_labels).numpy()
    return np.divide(correct, total, out=np.full(num_labels, np.nan), where=total > 0)


def client_accuracies(by_class: np.ndarray, label_distribution: np.ndarray) -> np.ndarray:
    """Each client's accuracy on data distributed as its own: class accuracies weighted by its label shares.

    Args:
        by_class: [C] of the model that the client would use.
        label_distribution: [num_clients, C] shares of the client's training labels.

    Returns:
        float64 [num_clients]; classes without held-out examples are left out of the weights.
    """
    known = ~np.isnan(by_class)
    weights = label_distribution[:, known]
    totals = weights.sum(1)
    return np.divide(weights @ by_class[known], totals, out=np.full(len(totals), np.nan), where=totals > 0)


def client_metrics(model: Any, own_labels: Tensor, examples: Examples, num_labels: int) -> dict[str, float]:
    """What a client that trained alone says of its model: on all of `examples`, and on its own label mix.

    Args:
        own_labels: the client's, int64 [N]; where `examples` has none of its classes there is no `own_accuracy`.
    """
    predicted = predict_logits(model, examples).argmax(1)
    shares = torch.bincount(own_labels, minlength=num_labels).double().numpy() / len(own_labels)
    (own,) = client_accuracies(accuracy_by_class(predicted, examples.labels, num_labels), shares[None])
    metrics = {"holdout_accuracy": float((predicted == examples.labels).double().mean())}
    return metrics if np.isnan(own) else {**metrics, "own_accuracy": float(own)}


def mean_and_worst_decile(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean over clients, and mean over the worst tenth of them (at least one)."""
    ordered = np.sort(np.asarray(values, dtype=float)[~np.isnan(values)])
    worst = ordered[: max(1, len(ordered) // 10)]
    return {"mean": float(ordered.mean()), "worst_decile": float(worst.mean())}
