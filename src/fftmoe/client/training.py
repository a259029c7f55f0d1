"""Runs the loop of local training, for one client and for several clients in one batch (docs/math.md, Local training).

Each step takes a batch, computes losses, makes gradients of them and lets the optimizers move the parameters. The two
callers differ in how they compute losses (`update.py`, `stack.py`). Private training differs in how gradients are made
(`example_privacy.py`). All the rest is here.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fftmoe.errors import RunError
from fftmoe.records import ClientPlan, Training, names

BatchT = TypeVar("BatchT")


class Losses(NamedTuple):
    """Holds the losses of one batch.

    Attributes:
        total: what is minimised, a scalar.
        task: the part that measures the task, a scalar; of C clients [C].
    """

    total: Tensor
    task: Tensor


LossOf = Callable[[BatchT], Losses]


class MakeGradients(Protocol[BatchT]):
    """Makes the gradients of a step."""

    def __call__(
        self, loss_of: LossOf[BatchT], batch: BatchT, parameters: list[nn.Parameter], pull: Callable[[], Tensor | float]
    ) -> Tensor | None:
        """Set the gradient of every parameter that the loss reaches.

        Args:
            loss_of: the losses of a batch.
            batch: the examples of this step.
            parameters: what is trained.
            pull: the proximal term, which depends on no example; to be computed after the losses.

        Returns:
            the task's loss without a graph; None where it must stay unknown.
        """
        ...


def plain_gradients(
    loss_of: LossOf[BatchT], batch: BatchT, parameters: list[nn.Parameter], pull: Callable[[], Tensor | float]
) -> Tensor:
    """Compute the gradients of the loss and the proximal term, in one backward pass:
    the order of its sums decides the bits.
    """
    losses = loss_of(batch)
    # Gradients only of what is trained: autograd then leaves out the rest of the backbone.
    (losses.total + pull()).backward(inputs=parameters)
    return losses.task.detach()


def train(
    batches: Iterable[BatchT],
    parameters: Mapping[str, nn.Parameter],
    training: Training,
    loss_of: LossOf[BatchT],
    make_gradients: MakeGradients[BatchT] = plain_gradients,
    stacked: bool = False,
    factors: Iterable[float] = (),
) -> Iterator[Tensor | None]:
    """Take one step of training for each batch.

    Args:
        batches: of any kind that `loss_of` takes.
        parameters: what is trained, by name.
        training: learning rates, optimizers, the strength of the proximal term, and the largest norm of a gradient.
        loss_of: the losses of a batch, computed with the parameters as they are at that moment.
        make_gradients: plain gradients, or private ones.
        stacked: the first dimension of every parameter is that of the clients.
        factors: of the learning rates in each step; 1 in those after the last one.

    Yields:
        after each step, what `make_gradients` returned. The caller can read the parameters at that moment.
    """
    own = list(parameters.values())
    start = [p.detach().clone() for p in own] if training.proximal else []
    optimizers = make_optimizers(parameters, training)
    pull = partial(proximal, own, start, training.proximal)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for batch, factor in zip(batches, itertools.chain(factors, itertools.repeat(1.0)), strict=False):
        task_loss = make_gradients(loss_of, batch, own, pull)
        if training.clip_gradients is not None:
            clip_gradients(own, training.clip_gradients, stacked)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        yield task_loss


def factors_of_steps(training: Training, num_steps: int) -> list[float]:
    """Return the factor of the rates in each step: equal parts of the steps have one of `rate_factors` each."""
    parts = training.rate_factors
    return [parts[step * len(parts) // num_steps] for step in range(num_steps)] if parts else []


def make_optimizers(parameters: Mapping[str, nn.Parameter], training: Training) -> list[torch.optim.Optimizer]:
    """Make AdamW for the adapter, plain SGD for the head (docs/math.md, Local training).

    AdamW gives every coordinate a step of similar size. Under label skew each client then pushes down the rows of its
    absent classes as hard as it pushes up the rows of its present classes, and the average forgets. SGD keeps the size
    of the gradient, which vanishes for a class that is already unlikely.
    """
    adapter = [p for name, p in parameters.items() if not names.is_head(name)]
    head = [p for name, p in parameters.items() if names.is_head(name)]
    adamw = partial(torch.optim.AdamW, weight_decay=training.weight_decay, fused=True)
    head_optimizer = torch.optim.SGD if training.head_optimizer == "sgd" else adamw
    pairs = [(adamw, adapter, training.learning_rate), (head_optimizer, head, training.head_learning_rate)]
    return [make(params, lr=rate) for make, params, rate in pairs if params]


def clip_gradients(parameters: Sequence[nn.Parameter], most: float, stacked: bool = False) -> None:
    """Scale the gradients of a step down to the Euclidean norm `most`, over all parameters of a client together.

    Norms and factors are float64, so that they are finite and not 0 for every finite gradient.

    Args:
        stacked: the first dimension of every parameter is that of the clients, and each has its own norm.
    """
    found = [p.grad if stacked else p.grad[None] for p in parameters if p.grad is not None]
    if not found:
        return
    norms = [torch.linalg.vector_norm(grad.reshape(len(grad), -1), dim=1, dtype=torch.float64) for grad in found]
    factors_C = (most / torch.linalg.vector_norm(torch.stack(norms), dim=0)).clamp(max=1.0)
    for grad in found:
        grad.copy_(grad * factors_C.view(-1, *[1] * (grad.dim() - 1)))


def proximal(parameters: list[nn.Parameter], start: list[Tensor], mu: float) -> Tensor | float:
    """Return (mu / 2) * |theta - theta_t|^2 (FedProx, arXiv 1812.06127); 0 when mu is 0."""
    if not mu:
        return 0.0
    return mu / 2 * sum(((p - s) ** 2).sum() for p, s in zip(parameters, start, strict=True))


def check_finite(task_losses: Sequence[Tensor], plan: ClientPlan) -> float:
    """Return the mean of the losses of a client's steps; not a number where a private client's training has diverged.

    What such a client sends is bounded like any other change, and zero if it is not finite (`methods/private.py:
    clipped`). An error would show that it has diverged, and with it something about its data; only the log of its own
    process says so.

    Raises:
        RunError: a loss is infinite or not a number, and the run is not private.
    """
    losses: list[float] = torch.stack(list(task_losses)).tolist()  # read once: each reading waits for a GPU
    bad = [step for step, loss in enumerate(losses, 1) if not math.isfinite(loss)]
    if bad:
        said = (
            f"client {plan.client_id}: the loss became {losses[bad[0] - 1]} in step {bad[0]} of round {plan.round}; "
            f"lower federation.learning_rate ({plan.training.learning_rate:g}) "
            f"or head.learning_rate ({plan.training.head_learning_rate:g})"
        )
        if not plan.concealed:
            raise RunError(said)
        logging.getLogger(__name__).warning("%s; its change is bounded, and zero if it is not finite", said)
        return math.nan
    return float(np.mean(losses))
