"""Computes the weighted mean of a cohort's deltas: per expert, or as FedAvg (docs/math.md, Aggregation).

    theta_m <- theta_m + eta * sum_n w_nm Delta_nm / sum_n w_nm,   w_nm = |D_n| a_nm^gamma

The per-expert mean follows FFT-MoE (arXiv 2508.18663), and `fedavg` is the paper's formula (McMahan et al., arXiv
1602.05629). Robust and private means implement the same protocol, `Aggregator`. Sums run in float64 in `client_id`
order, because float addition is not associative and clients finish in any order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.records import ClientUpdate, Tensors, names

AGGREGATIONS = ("per-expert", "fedavg")


class Aggregator(Protocol):
    """`Aggregator` merges the updates of a round into one delta of the global tensors."""

    def add(self, update: ClientUpdate) -> None:
        """Add the update of one client; updates arrive in ascending `client_id` order."""
        ...

    def mean(self) -> tuple[Tensors, Tensors]:
        """Return the delta of each tensor and the rows that change.

        Returns:
            Deltas, float64 in the shapes of the global tensors, and changed rows, `name -> bool [M]` (bool [1] for a
            tensor without experts). A tensor that is missing from both stays unchanged.
        """
        ...


Merge = Callable[[Mapping[str, torch.Size]], Aggregator]
"""A function from the shapes of the global tensors to an aggregator without any update."""


@dataclass
class WeightedSum:
    """`WeightedSum` computes the weighted mean of client deltas; its memory does not grow with the cohort.

    For each expert m the sums in `sum_n w_nm Delta_nm / sum_n w_nm` run over the clients n that trained m.

    Attributes:
        shapes: shapes of the global tensors by name.
        kind: `per-expert` divides by the weights of the clients that trained the expert. `fedavg` divides by the number
            of examples of the whole cohort, so a client that did not train the expert counts as a zero delta.
        activation_power: gamma, the exponent of the share a_nm of a client's routed slots that went to the expert.
        sums: the weighted sums of the deltas so far, float64.
        weights: the sums of the weights so far, float64 [M] ([1] for a tensor without experts).
        total: the number of examples of the cohort so far.
        last_client: the client whose update was added last.
    """

    shapes: Mapping[str, torch.Size]
    kind: str = "per-expert"
    activation_power: float = 0.0
    sums: Tensors = field(default_factory=dict)
    weights: Tensors = field(default_factory=dict)
    total: float = 0.0
    last_client: int = -1

    def __post_init__(self) -> None:
        if self.kind not in AGGREGATIONS:
            raise InputError(f"unknown aggregation {self.kind!r}{did_you_mean(self.kind, AGGREGATIONS)}")

    def add(self, update: ClientUpdate) -> None:
        """Add the update of one client; updates must arrive in ascending `client_id` order."""
        assert update.client_id > self.last_client, "updates must arrive in client_id order"
        self.last_client = update.client_id
        self.total += update.num_examples
        for name, delta in update.tensors.items():
            block = names.block_of(name)
            shape = self.shapes[name]
            total = self.sums.setdefault(name, torch.zeros(shape, dtype=torch.float64))
            if block is None:
                weight = self.weights.setdefault(name, torch.zeros(1, dtype=torch.float64))
                weight += update.num_examples
                total += update.num_examples * delta.double()
            else:
                weight = self.weights.setdefault(name, torch.zeros(shape[0], dtype=torch.float64))
                ids = torch.tensor(update.experts[block], dtype=torch.long)
                w = self._expert_weights(update, block)
                weight.index_add_(0, ids, w)
                total.index_add_(0, ids, w.view(-1, *[1] * (delta.dim() - 1)) * delta.double())

    def _expert_weights(self, update: ClientUpdate, block: int) -> Tensor:
        """Return w_nm for the experts m that client n trained, float64 [R_trained]."""
        if self.kind == "fedavg" or self.activation_power == 0:
            return torch.full((len(update.experts[block]),), float(update.num_examples), dtype=torch.float64)
        shares = torch.tensor(update.shares[block], dtype=torch.float64)
        return update.num_examples * shares**self.activation_power

    def mean(self) -> tuple[Tensors, Tensors]:
        """Return the mean deltas, and the rows that at least one client trained; see `Aggregator.mean`."""
        trained = {name: weight > 0 for name, weight in self.weights.items()}
        deltas = {}
        for name, total in self.sums.items():
            weight = self.weights[name]
            if self.kind == "fedavg":
                weight = torch.full_like(weight, self.total)
            rows = weight.where(trained[name], 1.0).view(-1, *[1] * (total.dim() - 1))
            deltas[name] = total / rows
        return deltas, trained
