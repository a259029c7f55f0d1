"""Trains a part of a language model that a client keeps for itself: its copy of the adapter, trained further.

It starts from the model that the run keeps, and learns from the rows that the client trains on. The client keeps it
where it answers the rows that the client has set aside better than that model. Nothing of it is sent.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from fftmoe.backbones import on_device, outputs
from fftmoe.client.update import train_session
from fftmoe.data import Examples, evaluation_batches
from fftmoe.methods.base import Method
from fftmoe.records import ClientPlan, Tensors
from fftmoe.tasks import Loss

JUDGED_AT_ONCE = 16  # set-aside rows in a batch


class OwnPart(NamedTuple):
    """Holds what a client keeps for itself.

    Attributes:
        tensors: that it has trained; empty where it does better without.
        margin: by how much the mean loss of the rows set aside is lower with them, in nats; 0 without.
        metrics: of the model with them.
    """

    tensors: Tensors
    margin: float
    metrics: Mapping[str, float]


def train_own_part(
    model: Any,
    method: Method,
    objective: Loss,
    plan: ClientPlan,
    tensors: Tensors,
    kept: Tensors,
    examples: Examples,
    rows: np.ndarray,
    set_aside: np.ndarray,
    measure: Callable[[Any], Mapping[str, float]],
    micro_batch_size: int | None = None,
) -> OwnPart:
    """Train a client's own part, and return it if it is better than the model from which it starts.

    Args:
        model, method, objective, plan, tensors, examples, micro_batch_size: see `update_client`.
        kept: the client's state. rows: on which it trains. set_aside: by which it chooses, at least one.
        measure: called with the trained model where it is kept.

    Raises:
        RunError: the loss became infinite or not a number.
    """
    with method.session(model, plan, tensors, kept) as session:
        before = loss_of_rows(model, objective, examples, set_aside)
        train_session(model, session, objective, plan, examples, rows, micro_batch_size)
        margin = before - loss_of_rows(model, objective, examples, set_aside)
        if not margin > 0:
            return OwnPart({}, 0.0, {})
        own = {name: p.detach().cpu().clone() for name, p in session.parameters.items()}
        return OwnPart(own, margin, measure(model))


def install_own_part(
    model: Any, method: Method, plan: ClientPlan, tensors: Tensors, kept: Tensors, own: Tensors
) -> None:
    """Put a client's model with its own part into the model; without one, its model as `Method.personalize` does.

    Args:
        tensors: that it downloads. kept: its state. own: the tensors of its own part.
    """
    without = {name: tensor for name, tensor in kept.items() if name not in own}
    method.personalize(model, {**tensors, **own}, plan, without)


@torch.no_grad()
def loss_of_rows(model: Any, objective: Loss, examples: Examples, rows: np.ndarray) -> float:
    """Return the mean loss over the items of these rows, as training defines it, in nats."""
    held = examples.select(torch.from_numpy(rows))
    total, items = 0.0, 0
    for batch_rows in evaluation_batches(held, JUDGED_AT_ONCE):
        batch = on_device(model, held.batch(batch_rows))
        number = objective.items(batch["labels"])
        if number:
            total += number * float(objective.loss(outputs(model, batch, objective.next_token), batch["labels"]))
            items += number
    return total / items if items else 0.0
