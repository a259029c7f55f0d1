"""Replaces the optimizers of local training by SGD, whose steps are linear in the gradients.

AdamW divides a gradient by its own size. Of a gradient that is nearly zero it makes, of a difference in the last bits,
a step of another length or sign; so two runs that differ only in rounding can be apart by whole steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fftmoe.client import training as local_training
from fftmoe.records import Training, names


def make_sgd(parameters: Mapping[str, nn.Parameter], training: Training) -> list[torch.optim.Optimizer]:
    rates = {True: training.head_learning_rate, False: training.learning_rate}
    return [torch.optim.SGD([{"params": [p], "lr": rates[names.is_head(name)]} for name, p in parameters.items()])]


@contextmanager
def plain_sgd() -> Iterator[None]:
    """While it is open, clients of this process train with SGD at the learning rates of the plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_training, "make_optimizers", make_sgd)
        yield
