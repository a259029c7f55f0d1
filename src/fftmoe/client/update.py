"""Computes one client's update: a function of (tensors, plan, client state, examples), the same in every engine.

This is the specification of local training. `stack.py` trains several clients in one batch and is compared with it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from fftmoe.backbones import check_skipped, on_device, outputs
from fftmoe.client.example_privacy import noisy_gradients, poisson_batches
from fftmoe.client.micro_batches import accumulated_gradients
from fftmoe.client.training import Losses, MakeGradients, check_finite, factors_of_steps, plain_gradients, train
from fftmoe.data import Examples, WithPrefix, training_batches
from fftmoe.methods.base import Method, Session
from fftmoe.records import ClientPlan, ClientUpdate, Tensors
from fftmoe.rng import generator
from fftmoe.tasks import Loss

NO_EXAMPLE = -1
"""In place of the index of a row that may be drawn, but from which nothing may be learnt."""


def update_client(
    model: Any,
    method: Method,
    objective: Loss,
    plan: ClientPlan,
    tensors: Tensors,
    client_state: Tensors,
    examples: Examples,
    indices: np.ndarray,
    measure: Callable[[Any], Mapping[str, float]] | None = None,
    micro_batch_size: int | None = None,
) -> tuple[ClientUpdate, Tensors]:
    """Train the client's part of the adapter on its own examples (docs/math.md, Local training).

    Args:
        model: the resident backbone with the adapter; only its adapter and head are written.
        method: the federated method, which may add an auxiliary loss.
        objective: the task's loss.
        plan: what the server asks of this client.
        tensors: what the server sent, `Method.download`.
        client_state: what this client kept from earlier rounds; empty the first time.
        examples: the data of all clients.
        indices: the client's examples, int64 [N]; some may be `NO_EXAMPLE`.
        measure: if given, it is called with the trained model, and its metrics are sent with the update.
        micro_batch_size: the most examples that are computed at a time; None for all of a step.

    Returns:
        the update to send, and the client's new state.

    Raises:
        RunError: the loss became infinite or not a number. InputError: the session touches blocks that do not run.
    """
    with method.session(model, plan, tensors, client_state) as session:
        metrics = train_session(model, session, objective, plan, examples, indices, micro_batch_size)
        metrics |= {} if measure is None else measure(model)
        return session.finish(len(indices), metrics)


def train_session(
    model: Any,
    session: Session,
    objective: Loss,
    plan: ClientPlan,
    examples: Examples,
    indices: np.ndarray,
    micro_batch_size: int | None,
) -> dict[str, float]:
    """Train what a session has loaded, and return the mean loss as `loss`, if anything was trained; for the arguments
    and the errors see `update_client`.
    """
    check_skipped(model)
    task_losses: list[Tensor] = []
    if session.parameters:  # a closed-form head on a backbone without an adapter has none
        loss_of = partial(client_losses, model, session, objective, examples)
        gradients = _gradients(plan, objective, examples, micro_batch_size)
        batches = local_batches(plan, indices, examples)
        factors = factors_of_steps(plan.training, len(batches))
        steps = train(batches, session.parameters, plan.training, loss_of, gradients, factors=factors)
        task_losses = [loss for loss in steps if loss is not None]
    return {"loss": check_finite(task_losses, plan)} if task_losses else {}


def _gradients(plan: ClientPlan, objective: Loss, examples: Examples, most: int | None) -> MakeGradients[Tensor]:
    """Return how the gradients of a step are made; private training computes one example at a time in any case."""
    if plan.training.example_clip is not None:
        return noisy_gradients(plan.training)
    if most is None:
        return plain_gradients
    plain = examples.examples if isinstance(examples, WithPrefix) else examples  # to count, no states are read
    return accumulated_gradients(most, lambda rows: objective.items(plain.batch(rows)["labels"]))


def client_losses(model: Any, session: Session, objective: Loss, examples: Examples, rows: Tensor) -> Losses:
    """Return the task's loss of these examples, and its sum with the method's auxiliary loss."""
    batch = on_device(model, examples.batch(rows))
    task_loss = objective.loss(outputs(model, batch, objective.next_token), batch["labels"])
    return Losses(task_loss + session.penalty(token_mask(batch)), task_loss)


def local_batches(plan: ClientPlan, indices: np.ndarray, examples: Examples) -> list[Tensor]:
    """Return the rows of every step of a client's training, int64; no steps for a client without any example.

    Where single examples are private, the number of rows decides how likely each is drawn, whether it is an example or
    not: which rows are examples must not show.
    """
    training = plan.training
    if training.example_clip is not None:
        assert training.local_steps is not None
        drawn = poisson_batches(indices, training.batch_size, training.local_steps)
        return [rows[rows != NO_EXAMPLE] for rows in drawn]
    examples_only = indices[indices != NO_EXAMPLE]
    if not len(examples_only):
        return []
    return training_batches(
        examples_only,
        training.batch_size,
        generator(plan.seed, "batches"),
        epochs=training.local_epochs,
        steps=training.local_steps,
        lengths=examples.lengths if training.group_by_length else None,
    )


def token_mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Return bool [T], False on padding; None where every position is a token (images)."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.flatten().bool()
