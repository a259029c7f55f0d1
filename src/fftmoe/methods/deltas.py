"""A session whose update is the change of what it trained, and the mean of such changes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fftmoe.methods.merge.aggregate import Merge, WeightedSum
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.records import ClientPlan, ClientUpdate, ServerState, Tensors, names

LONGEST_FLOAT = 1 / 30_000  # 3.3333333333333335e-05: no float is written with more digits


class DeltaSession:
    """Trains `parameters`, which are in the model already, and sends their change.

    Args:
        plan: the client's plan.
        parameters: what is trained, by name.
        kept: names of those that stay on the client: their values become its state and are not sent.
    """

    def __init__(
        self, plan: ClientPlan, parameters: Mapping[str, nn.Parameter], kept: Collection[str] = frozenset()
    ) -> None:
        self.plan, self.parameters, self.kept = plan, parameters, kept
        self.start = {name: p.detach().clone() for name, p in parameters.items()}

    def penalty(self, mask: Tensor | None) -> Tensor:
        """No auxiliary loss."""
        return torch.zeros(())

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Deltas of what is shared, values of what is kept."""
        trained = {name: p.detach() for name, p in self.parameters.items()}
        update = ClientUpdate(
            round=self.plan.round,
            client_id=self.plan.client_id,
            num_examples=num_examples,
            tensors={name: (p - self.start[name]).cpu() for name, p in trained.items() if name not in self.kept},
            metrics=dict(metrics),
        )
        return update, {name: trained[name].cpu().clone() for name in trained if name in self.kept}


class DeltaMean:
    """Example-weighted mean of a round's deltas, tensor by tensor over the clients that sent it, as they arrive.

    A tensor that nobody sent is unchanged bit for bit.
    """

    def __init__(
        self, state: ServerState, optimizer: ServerOptimizer | None = None, merge: Merge = WeightedSum
    ) -> None:
        self.state, self.optimizer = state, optimizer or ServerOptimizer()
        self.mean = merge({name: t.shape for name, t in state.tensors.items()})
        self.losses: list[float] = []

    def add(self, update: ClientUpdate) -> None:
        """Add one client; clients must come in ascending `client_id` order."""
        self.mean.add(update)
        self.losses += losses_of(update)

    def finish(self) -> tuple[ServerState, dict[str, Any]]:
        """The next state, and the round's diagnostics."""
        tensors, moments = self.optimizer.apply(self.state.tensors, *self.mean.mean(), self.state.optimizer)
        state = replace(self.state, round=self.state.round + 1, tensors=tensors, optimizer=moments)
        return state, {"train_loss": mean_loss(self.losses)}


def losses_of(update: ClientUpdate) -> list[float]:
    """The client's training loss, or nothing where it trained nothing."""
    return [update.metrics["loss"]] if "loss" in update.metrics else []


def mean_loss(losses: list[float]) -> float:
    """Mean over the cohort; 0 where nobody trained."""
    return sum(losses) / max(len(losses), 1)


def head_of(update: ClientUpdate) -> ClientUpdate:
    """The update without anything but the head."""
    return replace(update, tensors={name: t for name, t in update.tensors.items() if names.is_head(name)})


def zeros(shape: Sequence[int]) -> Tensor:
    """Zeros of this shape, in the memory of one number."""
    return torch.zeros(()).expand(shape)


def widest(plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
    """An update of these tensors whose header is as long as headers get."""
    return ClientUpdate(plan.round, plan.client_id, 99_999, tensors, metrics={"loss": LONGEST_FLOAT})
