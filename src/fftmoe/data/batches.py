"""Decides which examples go into which batch: indices only, never the data."""

import math

import torch
from torch import Tensor

from fftmoe.data.examples import Examples, Rows
from fftmoe.shown import count_of

# Batches that are sorted by length together: enough to avoid most padding, few enough to keep batches random.
POOL_BATCHES = 8


def evaluation_batches(examples: Examples, batch_size: int, indices: Rows | None = None) -> list[Tensor]:
    """Return every example once, sorted by length, so that there is little padding and memory peaks in the first batch.

    Args:
        examples: the data.
        batch_size: examples per batch; the last may be smaller.
        indices: the examples to take; all by default.

    Returns:
        int64 index tensors, longest texts first, equal lengths in index order.
    """
    chosen = torch.arange(len(examples)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
    by_length = examples.lengths[chosen].argsort(descending=True, stable=True)
    return list(chosen[by_length].split(batch_size)) if len(chosen) else []


def training_batches(
    indices: Rows | int,
    batch_size: int,
    generator: torch.Generator,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lengths: Tensor | None = None,
) -> list[Tensor]:
    """Return shuffled batches of a client's local training, a new order in every epoch.

    With `lengths`, texts of similar length share a batch, which reduces padding: each group of `POOL_BATCHES` shuffled
    batches is sorted by length, and its batches are shuffled again.

    Args:
        indices: the client's example indices, or their number n for 0..n-1; at least one.
        batch_size: examples per batch; an epoch's last batch may be smaller.
        generator: the randomness of the orders.
        epochs: passes over the data.
        steps: number of batches, over as many epochs as needed; give either this or `epochs`.
        lengths: int64, tokens of every example of the data set that `indices` refer to.

    Returns:
        int64 index tensors, one per optimizer step.
    """
    pool = torch.arange(indices) if isinstance(indices, int) else torch.as_tensor(indices, dtype=torch.int64)
    if (epochs is None) == (steps is None):
        raise ValueError(f"give exactly one of epochs or steps: epochs={epochs}, steps={steps}")
    if len(pool) == 0 or batch_size < 1:
        raise ValueError(
            f"nothing to train on: {count_of(len(pool), 'example')} in batches of {batch_size}; give at least one each"
        )
    num_epochs = (epochs or 0) if steps is None else math.ceil(steps / math.ceil(len(pool) / batch_size))
    batches: list[Tensor] = []
    for _ in range(num_epochs):
        order = pool[torch.randperm(len(pool), generator=generator)]
        batches.extend(
            order.split(batch_size) if lengths is None else _by_length(order, batch_size, lengths, generator)
        )
    return batches[:steps]


def _by_length(order: Tensor, batch_size: int, lengths: Tensor, generator: torch.Generator) -> list[Tensor]:
    batches: list[Tensor] = []
    for run in order.split(POOL_BATCHES * batch_size):
        alike = run[lengths[run].argsort(stable=True)].split(batch_size)
        batches.extend(alike[i] for i in torch.randperm(len(alike), generator=generator).tolist())
    return batches
