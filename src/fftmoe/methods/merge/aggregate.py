"""Exact sums over a cohort: per expert over the clients that trained it, or FedAvg (docs/math.md, Aggregation).

`Aggregator` is what takes their place where clients are not trusted, or not to be known. Sums run in float64 in
`client_id` order: float addition is not associative and clients finish in any order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.records import ClientUpdate, Tensors, names

KINDS = ("per-expert", "fedavg")


class Aggregator(Protocol):
    """From the updates of a round, one after another in `client_id` order, to one delta of the global tensors."""

    def add(self, update: ClientUpdate) -> None:
        """Take in one client."""
        ...

    def mean(self) -> tuple[Tensors, Tensors]:
        """The delta, float64 and shaped as the global tensors, and per tensor which of its rows are to change.

        Returns:
            deltas, and `name -> bool [M]` (bool [1] for a tensor without experts); names left out stay as they are.
        """
        ...


Merge = Callable[[Mapping[str, torch.Size]], Aggregator]
"""From the shapes of the global tensors to an aggregator that has seen no update."""


@dataclass
class WeightedSum:
    """Streaming weighted mean of client deltas, one client at a time, so memory does not grow with the cohort.

    Per expert m and cohort members n that trained it, `sum_n w_nm delta_nm / sum_n w_nm` with
    `w_nm = |D_n| * a_nm ** activation_power`. `kind="fedavg"` divides by `sum_n |D_n|` over the whole cohort
    instead (a client that did not train m contributes a zero delta), which is the paper's formula.
    """

    shapes: Mapping[str, torch.Size]
    kind: str = "per-expert"
    activation_power: float = 0.0
    sums: Tensors = field(default_factory=dict)
    weights: Tensors = field(default_factory=dict)
    total: float = 0.0
    last_client: int = -1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown aggregation {self.kind!r}{did_you_mean(self.kind, KINDS)}")

    def add(self, update: ClientUpdate) -> None:
        """Add one client; clients must come in ascending `client_id` order."""
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
        """w_nm of the experts that client n trained, float64 [R_trained]."""
        if self.kind == "fedavg" or self.activation_power == 0:
            return torch.full((len(update.experts[block]),), float(update.num_examples), dtype=torch.float64)
        shares = torch.tensor(update.shares[block], dtype=torch.float64)
        return update.num_examples * shares**self.activation_power

    def mean(self) -> tuple[Tensors, Tensors]:
        """Mean deltas (float64, shaped as the global tensors) and, per tensor, which rows anyone trained.

        Returns:
            deltas, and `name -> bool [M]` (bool [1] for a tensor without experts).
        """
        trained = {name: weight > 0 for name, weight in self.weights.items()}
        deltas = {}
        for name, total in self.sums.items():
            weight = self.weights[name]
            if self.kind == "fedavg":
                weight = torch.full_like(weight, self.total)
            rows = weight.where(trained[name], 1.0).view(-1, *[1] * (total.dim() - 1))
            deltas[name] = total / rows
        return deltas, trained
