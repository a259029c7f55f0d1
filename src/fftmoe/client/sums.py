"""A client's part of a closed-form head: sums over its examples, which are less than data and no protection of it.

They hold how many examples of each label the client has, and the sum of their features. Of a label with one example
that sum is the example's features; the sums of a client with one example are that example, its label included.
"""

from typing import Any

import numpy as np
import torch

from fftmoe.backbones import head_inputs, on_device
from fftmoe.data import Examples, evaluation_batches
from fftmoe.head import HeadSums

BATCH_SIZE = 64


@torch.inference_mode()
def head_sums(model: Any, examples: Examples, indices: np.ndarray, num_labels: int) -> HeadSums:
    """The sums over these examples (int64 [N], at least one) of what the model's head reads."""
    return HeadSums.total(
        HeadSums.of(head_inputs(model, on_device(model, batch)).cpu(), batch["labels"], num_labels)
        for batch in map(examples.batch, evaluation_batches(examples, BATCH_SIZE, indices))
    )
