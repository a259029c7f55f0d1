"""Trains parameters in a session that sends their deltas, and averages such deltas.

With Delta_n = theta_n - theta the change of client n's parameters and |D_n| its number of examples, the server computes
theta + sum_n |D_n| Delta_n / sum_n |D_n| (FedAvg; McMahan et al., arXiv 1602.05629).
"""

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
    """`DeltaSession` is a training session that sends the change of the parameters that it trained.

    Args:
        plan: the client's plan.
        parameters: the trained parameters by name; they are already part of the model.
        kept: names of the parameters that stay on the client. Their values become the client's state.
    """

    def __init__(
        self, plan: ClientPlan, parameters: Mapping[str, nn.Parameter], kept: Collection[str] = frozenset()
    ) -> None:
        self.plan, self.parameters, self.kept = plan, parameters, kept
        self.start = {name: p.detach().clone() for name, p in parameters.items()}

    def penalty(self, mask: Tensor | None) -> Tensor:
        """Return zero: these methods have no auxiliary loss."""
        return torch.zeros(())

    def finish(self, num_examples: int, metrics: Mapping[str, float]) -> tuple[ClientUpdate, Tensors]:
        """Return an update with the deltas of the shared parameters, and a state with the values of the kept ones."""
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
    """`DeltaMean` computes the example-weighted mean of a round's deltas and applies it to the global model.

    Each tensor is averaged over the clients that sent it. Updates are added one after another. A tensor that no client
    sent keeps its bits.

    Args:
        state: the state before the round.
        optimizer: applies the mean delta; None: adds it.
        merge: makes the aggregator that computes the mean.
    """

    def __init__(
        self, state: ServerState, optimizer: ServerOptimizer | None = None, merge: Merge = WeightedSum
    ) -> None:
        self.state, self.optimizer = state, optimizer or ServerOptimizer()
        self.mean = merge({name: t.shape for name, t in state.tensors.items()})
        self.losses: list[float] = []

    def add(self, update: ClientUpdate) -> None:
        """Add the update of one client; updates must arrive in ascending `client_id` order."""
        self.mean.add(update)
        self.losses += losses_of(update)

    def finish(self) -> tuple[ServerState, dict[str, Any]]:
        """Return the next state and the round's diagnostics."""
        tensors, moments = self.optimizer.apply(self.state.tensors, *self.mean.mean(), self.state.optimizer)
        state = replace(self.state, round=self.state.round + 1, tensors=tensors, optimizer=moments)
        return state, {"train_loss": mean_loss(self.losses)}


def losses_of(update: ClientUpdate) -> list[float]:
    """Return the client's training loss in a list, which is empty if the client trained nothing."""
    return [update.metrics["loss"]] if "loss" in update.metrics else []


def mean_loss(losses: list[float]) -> float:
    """Return the mean loss over the cohort; 0 if no client trained."""
    return sum(losses) / max(len(losses), 1)


def head_of(update: ClientUpdate) -> ClientUpdate:
    """Return the update with the tensors of the head only."""
    return replace(update, tensors={name: t for name, t in update.tensors.items() if names.is_head(name)})


def zeros(shape: Sequence[int]) -> Tensor:
    """Return zeros of this shape, which take the memory of one number."""
    return torch.zeros(()).expand(shape)


def widest(plan: ClientPlan, tensors: Tensors) -> ClientUpdate:
    """Return an update of these tensors whose metrics take the largest number of characters."""
    return ClientUpdate(plan.round, plan.client_id, 99_999, tensors, metrics={"loss": LONGEST_FLOAT})
