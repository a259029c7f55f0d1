"""Computes a client's part of a closed-form head: feature statistics, which are sums over the client's examples.

The sums hold less than the data, but they do not protect it. They say how many examples of each label the client has
and give the sum of their features. For a label with one example that sum is the features of that example. The sums of
a client with a single example are that example, with its label. `of_frequent_labels` chooses the examples of a client
that does not want this.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import head_inputs, head_parameters, on_device
from fftmoe.data import Examples, evaluation_batches
from fftmoe.head import HeadSums, are_few, few_tensors, score_sums
from fftmoe.head.temperature import LARGEST_SCORE
from fftmoe.records import Tensors, names

SUMS_BATCH_SIZE = 64


def of_frequent_labels(indices: np.ndarray, labels: Tensor, fewest: float) -> np.ndarray:
    """Return the examples whose label at least `fewest` of these examples have, in the same order.

    The other examples must be left out of every sum, also of those over all labels: whoever subtracts the sums of the
    frequent labels from a sum over all labels has the sum of the rare ones.

    Args:
        indices: the client's examples, int64 [N].
        labels: of all examples, integers.
    """
    _, places, counts = np.unique(labels[torch.from_numpy(indices)].numpy(), return_inverse=True, return_counts=True)
    return indices[counts[places] >= fewest]


@torch.inference_mode()
def head_sums(
    model: Any, examples: Examples, indices: np.ndarray, num_labels: int, reveal_number: bool = True
) -> Tensors:
    """Return the sums over these examples of the features that the model's head reads, ready to be sent.

    Args:
        model: the backbone with the adapter.
        examples: the data of all clients.
        indices: the client's examples, int64 [N], at least one.
        num_labels: classes of the head.
        reveal_number: whether the size of the answer may depend on N; False where N must stay unknown.
    """
    scores: list[Tensor] = []
    batches = _scored(model, _features_and_labels(model, examples, indices), scores)
    first = next(batches)
    if reveal_number and are_few(len(indices), first[0].shape[1]):
        features, labels = map(torch.cat, zip(first, *batches, strict=True))
        sums = few_tensors(features, labels, num_labels)
    else:
        sums = HeadSums.total(HeadSums.of(*batch, num_labels) for batch in chain([first], batches)).to_tensors()
    total = torch.stack(scores).sum(0).clamp_max(LARGEST_SCORE)
    return {**sums, names.STATISTICS_SCORES: total.float()}


def _scored(
    model: Any, batches: Iterator[tuple[Tensor, Tensor]], scores: list[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; the scores of the head that the client was sent are added to `scores`, batch by batch."""
    head = {name: p.detach().cpu() for name, p in head_parameters(model).items()}
    for features, labels in batches:
        outputs = torch.addmm(head["bias"], features, head["weight"].T)
        scores.append(score_sums(outputs, labels))
        yield features, labels


def _features_and_labels(model: Any, examples: Examples, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features float32 [B, F] and labels int64 [B], batch by batch."""
    for batch in map(examples.batch, evaluation_batches(examples, SUMS_BATCH_SIZE, indices)):
        yield head_inputs(model, on_device(model, batch)).cpu(), batch["labels"]
