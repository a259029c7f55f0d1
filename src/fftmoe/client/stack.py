"""Computes the updates of several clients in one batch on one backbone.

A small batch leaves a processor idle between many small operations. Clients of one budget make one large batch
instead. Both ways share the loop of `training.py`; `update_client` is the specification, and the updates here equal
its updates up to rounding. They cannot be equal to the bit, because these sums run in another order:

- the backbone multiplies the rows of all clients in one product, and a product of another shape adds in another order;
- the task's loss of a client is a masked sum over its row of the batch, divided by a count, whereas a single client
  takes the mean of its batch; the masked sums of the auxiliary losses differ likewise;
- trained heads and the `wide` computation of the experts are batched products over the clients.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import device_of, on_device, token_losses
from fftmoe.client.training import Losses, check_finite, train
from fftmoe.client.update import local_batches
from fftmoe.data import Examples
from fftmoe.methods.base import Method, Stack
from fftmoe.records import ClientPlan, ClientUpdate, Tensors
from fftmoe.tasks import LossByExample


def update_stack(
    model: Any,
    method: Method,
    objective: LossByExample,
    plans: Sequence[ClientPlan],
    tensors: Sequence[Tensors],
    client_states: Sequence[Tensors],
    examples: Examples,
    indices: Sequence[np.ndarray],
) -> list[tuple[ClientUpdate, Tensors]]:
    """Update C clients as `update_client` updates one. What is one value for one client there is a sequence here.

    A client with fewer steps than another is finished after its own last step.

    Raises:
        RunError: the loss of a client became infinite or not a number.
    """
    batches = [local_batches(plan, rows, examples) for plan, rows in zip(plans, indices, strict=True)]
    results: dict[int, tuple[ClientUpdate, Tensors]] = {}
    losses: list[list[Tensor]] = [[] for _ in plans]
    with method.stack(model, plans, tensors, client_states) as stack:
        for c, own in enumerate(batches):
            if not own:  # a client without any example
                results[c] = stack.finish(c, len(indices[c]), {})
        loss_of = partial(stacked_losses, model, stack, objective, examples)
        steps = train(stacked_rows(batches), stack.parameters, plans[0].training, loss_of, stacked=True)
        for step, task_C in enumerate(steps):
            assert task_C is not None
            for c, own in enumerate(batches):
                if step < len(own):
                    losses[c].append(task_C[c])
                if step == len(own) - 1:  # later steps would go on changing this client's parameters
                    metrics = {"loss": check_finite(losses[c], plans[c])}
                    results[c] = stack.finish(c, len(indices[c]), metrics)
    return [results[c] for c in range(len(plans))]


class StackedRows(NamedTuple):
    """Describes one step of C clients: example rows int64 [C, B], and bool [C, B],
    False where a row only fills a gap.
    """

    rows_CB: Tensor
    real_CB: Tensor


def stacked_rows(batches: Sequence[Sequence[Tensor]]) -> Iterator[StackedRows]:
    """Yield the steps of all clients, one after another, until the last client is done.

    Args:
        batches: for each client, the rows int64 [b] of each of its steps.
    """
    for step in range(max(map(len, batches))):
        present = {c: own[step] for c, own in enumerate(batches) if step < len(own)}
        filler, width = next(iter(present.values()))[0], max(map(len, present.values()))
        rows_CB = filler.expand(len(batches), width).clone()
        real_CB = torch.zeros(len(batches), width, dtype=torch.bool)
        for c, rows in present.items():
            rows_CB[c, : len(rows)] = rows
            real_CB[c, : len(rows)] = True
        yield StackedRows(rows_CB, real_CB)


def stacked_losses(model: Any, stack: Stack, objective: LossByExample, examples: Examples, step: StackedRows) -> Losses:
    """Return the sum of the clients' losses, and the task's loss of each client [C];
    rows that fill gaps do not count.
    """
    batch, real_CB = on_device(model, examples.batch(step.rows_CB.flatten())), step.real_CB.to(device_of(model))
    found = token_losses(model, batch) if objective.next_token else stack.logits(batch).flatten(0, 1)
    losses_CB, items_CB = (each.view_as(real_CB) for each in objective.by_example(found, batch["labels"]))
    task_C = (losses_CB * real_CB).sum(-1) / (items_CB * real_CB).sum(-1).clamp_min(1)
    return Losses((task_C + stack.penalty(_mask(batch, real_CB))).sum(), task_C)


def _mask(batch: dict[str, Tensor], real_CB: Tensor) -> Tensor:
    """Return which tokens count, [C, T]; [C, B] where every position of an example is a token (images)."""
    mask = batch.get("attention_mask")
    if mask is None:
        return real_CB
    tokens_CBS = mask.bool().view(*real_CB.shape, -1) & real_CB[..., None]
    return tokens_CBS.flatten(1)
