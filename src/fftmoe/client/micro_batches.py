"""Computes the gradients of a step in parts, so that less is in memory at a time: `engine.micro_batch_size`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fftmoe.client.training import LossOf, MakeGradients, plain_gradients

ItemsOf = Callable[[Tensor], int]
"""From the rows of some examples to the number of items over which their loss is a mean, see `Loss.items`."""


def accumulated_gradients(most: int, items_of: ItemsOf) -> MakeGradients[Tensor]:
    """Return how gradients are made of parts of at most `most` examples, whose gradients add up to those of the step.

    The task's loss is exactly that of the whole batch, up to rounding: a part counts as much as it has items. Auxiliary
    losses are computed within each part and weighed alike, because they are not means over examples.
    """

    def make(
        loss_of: LossOf[Tensor], batch: Tensor, parameters: list[nn.Parameter], pull: Callable[[], Tensor | float]
    ) -> Tensor | None:
        parts = batch.split(most)
        if len(parts) == 1:
            return plain_gradients(loss_of, batch, parameters, pull)
        items = [items_of(part) for part in parts]
        tasks = []
        for part, number in zip(parts, items, strict=True):
            share = number / max(1, sum(items))
            losses = loss_of(part)
            (losses.total * share).backward(inputs=parameters)
            tasks.append(losses.task.detach() * share)
        if isinstance(pulled := pull(), Tensor):  # the proximal term, once in a step
            pulled.backward(inputs=parameters)
        return torch.stack(tasks).sum()

    return make
