"""Several clients trained at once on one backbone, with the result of training one after another.

A small batch leaves a processor idle between many small operations. Clients of one budget make one large batch
instead. `update_client` is the specification; the updates are equal to its own up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.backbones import device_of, on_device
from fftmoe.client.update import check_finite, local_batches, make_optimizers, proximal
from fftmoe.data import Examples
from fftmoe.head import Head
from fftmoe.methods.base import StackingMethod
from fftmoe.records import ClientPlan, ClientUpdate, Tensors


def update_stack(
    model: Any,
    method: StackingMethod,
    head: Head,
    plans: Sequence[ClientPlan],
    tensors: Sequence[Tensors],
    client_states: Sequence[Tensors],
    examples: Examples,
    indices: Sequence[np.ndarray],
) -> list[tuple[ClientUpdate, Tensors]]:
    """`update_client` for C clients; everything that is one per client there is a sequence here.

    A client with fewer steps than another is finished after its own last one.

    Raises:
        RunError: the loss of a client became infinite or not a number.
    """
    training, device = plans[0].training, device_of(model)
    batches = [local_batches(plan, rows, examples) for plan, rows in zip(plans, indices, strict=True)]
    results: dict[int, tuple[ClientUpdate, Tensors]] = {}
    losses: list[list[Tensor]] = [[] for _ in plans]
    with method.stack(model, plans, tensors, client_states) as stack:
        parameters = list(stack.parameters.values())
        start = [p.detach().clone() for p in parameters] if training.proximal else []
        optimizers = make_optimizers(stack.parameters, training)
        for step in range(max(map(len, batches))):
            rows_CB, real_CB = _side_by_side([own[step] if step < len(own) else None for own in batches])
            batch, real_CB = on_device(model, examples.batch(rows_CB.flatten())), real_CB.to(device)
            losses_CB = head.losses(stack.logits(batch), batch["labels"].view_as(rows_CB))
            task_C = (losses_CB * real_CB).sum(-1) / real_CB.sum(-1).clamp_min(1)
            loss = (task_C + stack.penalty(_mask(batch, real_CB))).sum()
            (loss + proximal(parameters, start, training.proximal)).backward(inputs=parameters)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            for c, own in enumerate(batches):
                if step < len(own):
                    losses[c].append(task_C.detach()[c])
                if step == len(own) - 1:  # what the optimizers do to it from now on is no longer its own
                    metrics = {"loss": check_finite(losses[c], plans[c])}
                    results[c] = stack.finish(c, len(indices[c]), metrics)
    return [results[c] for c in range(len(plans))]


def _side_by_side(batches: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Rows int64 [C, B] of the clients' batches, and which of them are real; others repeat an example for nothing."""
    present = [rows for rows in batches if rows is not None]
    filler, width = present[0][0], max(map(len, present))
    rows_CB = filler.expand(len(batches), width).clone()
    real_CB = torch.zeros(len(batches), width, dtype=torch.bool)
    for c, rows in enumerate(batches):
        if rows is not None:
            rows_CB[c, : len(rows)] = rows
            real_CB[c, : len(rows)] = True
    return rows_CB, real_CB


def _mask(batch: dict[str, Tensor], real_CB: Tensor) -> Tensor:
    """Which tokens count, [C, T]; [C, B] where every position of an example is a token (images)."""
    mask = batch.get("attention_mask")
    if mask is None:
        return real_CB
    tokens_CBS = mask.bool().view(*real_CB.shape, -1) & real_CB[..., None]
    return tokens_CBS.flatten(1)
