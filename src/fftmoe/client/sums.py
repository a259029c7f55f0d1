"""A client's part of a closed-form head: sums over its examples, which are less than data and no protection of it.

They hold how many examples of each label the client has, and the sum of their features. Of a label with one example
that sum is the example's features; the sums of a client with one example are that example, its label included.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import head_inputs, on_device
from fftmoe.data import Examples, evaluation_batches
from fftmoe.head import HeadSums, are_few, few_tensors
from fftmoe.records import Tensors

BATCH_SIZE = 64


@torch.inference_mode()
def head_sums(
    model: Any, examples: Examples, indices: np.ndarray, num_labels: int, number_told: bool = True
) -> Tensors:
    """The sums over these examples of what the model's head reads, for the wire.

    Args:
        indices: int64 [N], at least one.
        number_told: False: what is sent is as large whatever N is.
    """
    read = _read(model, examples, indices)
    first = next(read)
    if number_told and are_few(len(indices), first[0].shape[1]):
        features, labels = map(torch.cat, zip(first, *read, strict=True))
        return few_tensors(features, labels, num_labels)
    return HeadSums.total(HeadSums.of(*batch, num_labels) for batch in chain([first], read)).to_tensors()


def _read(model: Any, examples: Examples, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Features float32 [B, F] and labels int64 [B], batch by batch."""
    for batch in map(examples.batch, evaluation_batches(examples, BATCH_SIZE, indices)):
        yield head_inputs(model, on_device(model, batch)).cpu(), batch["labels"]
