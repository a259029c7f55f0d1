"""What a client does: a function of (tensors, plan, client state, data), the same in every engine."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fftmoe.backbones import logits, on_device
from fftmoe.client.example_privacy import noisy_backward, poisson_batches
from fftmoe.data import Examples, training_batches
from fftmoe.errors import RunError
from fftmoe.methods.base import Method
from fftmoe.records import ClientPlan, ClientUpdate, Tensors, Training, names
from fftmoe.rng import generator
from fftmoe.tasks import Loss


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
) -> tuple[ClientUpdate, Tensors]:
    """Train the client's part of the adapter on its own examples (docs/math.md, Local training).

    Args:
        model: the resident backbone with the adapter attached; only its adapter and head are written.
        objective: the task's loss; the method adds its own.
        tensors: what the server sent, `Method.download`.
        client_state: what this client kept from its earlier rounds; empty the first time.
        indices: the client's examples, int64 [N].
        measure: if given, called with the trained model; its metrics are sent along.

    Returns:
        the update to send, and the client's new state.

    Raises:
        RunError: the loss became infinite or not a number.
    """
    training = plan.training
    with method.session(model, plan, tensors, client_state) as session:
        parameters = list(session.parameters.values())
        if not parameters:  # a solved head on a backbone without an adapter
            return session.finish(len(indices), {} if measure is None else measure(model))
        start = [p.detach().clone() for p in parameters] if training.proximal else []
        optimizers = make_optimizers(session.parameters, training)
        task_losses: list[Tensor] = []

        def loss_of(rows: Tensor) -> tuple[Tensor, Tensor]:
            batch = on_device(model, examples.batch(rows))
            task_loss = objective.loss(logits(model, batch), batch["labels"])
            return task_loss + session.penalty(token_mask(batch)), task_loss

        for rows in local_batches(plan, indices, examples):
            if training.example_clip is None:
                loss, task_loss = loss_of(rows)
                # Gradients only where something trains: autograd prunes the rest of the backbone.
                (loss + proximal(parameters, start, training.proximal)).backward(inputs=parameters)
                task_losses.append(task_loss.detach())
            else:
                noisy_backward(lambda row: loss_of(row)[0], rows, parameters, training)
                if training.proximal:  # no example has a part in it
                    torch.as_tensor(proximal(parameters, start, training.proximal)).backward(inputs=parameters)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        metrics = {"loss": check_finite(task_losses, plan)} if training.example_clip is None else {}
        if measure is not None:
            metrics |= measure(model)
        return session.finish(len(indices), metrics)


def local_batches(plan: ClientPlan, indices: np.ndarray, examples: Examples) -> list[Tensor]:
    """The rows of every step of a client's training, int64."""
    training = plan.training
    if training.example_clip is not None:
        assert training.local_steps is not None
        return poisson_batches(indices, training.batch_size, training.local_steps)
    return training_batches(
        indices,
        training.batch_size,
        generator(plan.seed, "batches"),
        epochs=training.local_epochs,
        steps=training.local_steps,
        lengths=examples.lengths if training.group_by_length else None,
    )


def check_finite(task_losses: Sequence[Tensor], plan: ClientPlan) -> float:
    """The mean of the steps' losses.

    Raises:
        RunError: one of them is infinite or not a number.
    """
    losses: list[float] = torch.stack(list(task_losses)).tolist()  # read once: each reading waits for a GPU
    bad = [step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)]
    if bad:
        raise RunError(
            f"client {plan.client_id}: the loss became {losses[bad[0] - 1]} in step {bad[0]} of round {plan.round}; "
            f"lower federation.learning_rate ({plan.training.learning_rate:g}) "
            f"or head.learning_rate ({plan.training.head_learning_rate:g})"
        )
    return float(np.mean(losses))


def make_optimizers(parameters: Mapping[str, nn.Parameter], training: Training) -> list[torch.optim.Optimizer]:
    """AdamW for the adapter, plain SGD for the head (docs/math.md, Local training).

    AdamW gives every coordinate a step of like size. Under label skew that makes each client push the rows of its
    absent classes down as hard as it pushes its own up, and the average forgets; SGD keeps the gradient's size,
    which vanishes for a class that is already unlikely.
    """
    adapter = [p for name, p in parameters.items() if not names.is_head(name)]
    head = [p for name, p in parameters.items() if names.is_head(name)]
    adamw = partial(torch.optim.AdamW, weight_decay=training.weight_decay, fused=True)
    head_optimizer = torch.optim.SGD if training.head_optimizer == "sgd" else adamw
    pairs = [(adamw, adapter, training.learning_rate), (head_optimizer, head, training.head_learning_rate)]
    return [make(params, lr=rate) for make, params, rate in pairs if params]


def token_mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Bool [T], False on padding; None where every position is a token (images)."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.flatten().bool()


def proximal(parameters: list[nn.Parameter], start: list[Tensor], mu: float) -> Tensor | float:
    """(mu / 2) * |theta - theta_t|^2 (FedProx, arXiv 1812.06127); 0 when mu is 0."""
    if not mu:
        return 0.0
    return mu / 2 * sum(((p - s) ** 2).sum() for p, s in zip(parameters, start, strict=True))
