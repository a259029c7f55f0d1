"""Sums over clients from which no single client can be told, with noise or without (docs/math.md, Privacy).

Without noise, "sums only": a row (an expert, or a tensor without experts) changes only where enough clients of the
round contribute to it. With noise, client-level differential privacy: one client moves the sums by at most `clip_norm`
over all tensors together, every number that changes gets noise, and nothing else (who came, how many, which experts
they trained) has a say in what changes or in what it is divided by.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fftmoe.methods.base import Method
from fftmoe.methods.merge.aggregate import Aggregator
from fftmoe.methods.noise import Draw, normal
from fftmoe.records import Budget, ClientPlan, ClientUpdate, ServerState, Tensors, Training, names


def joint_norm(tensors: Mapping[str, Tensor]) -> float:
    """The Euclidean norm over all numbers of all tensors."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def clipped(tensors: Mapping[str, Tensor], most: float) -> Tensors:
    """These changes, scaled together to a joint norm of at most `most`; zeros in the place of infinite ones."""
    norm = joint_norm(tensors)
    if not math.isfinite(norm):
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    return {name: tensor * (most / norm) for name, tensor in tensors.items()} if norm > most else dict(tensors)


@dataclass(frozen=True)
class Noise:
    """What makes sums a release of differential privacy.

    Attributes:
        std: of the noise on every number of a sum, z C.
        expected: name -> float64 [M] ([1] of a tensor without experts): how many clients contribute to a row in a
            round on average, by the design and the sampling rate alone.
        expected_clients: of a round, on average.
        announce: called before anything is drawn, so that a release is counted even if the process ends in it.
        draw: the operating system's numbers, unless a test says otherwise.
    """

    std: float
    expected: Tensors
    expected_clients: float
    announce: Callable[[], None]
    draw: Draw = normal


@dataclass
class PrivateSum:
    """An `Aggregator` without weights: the mean of clipped changes, in which each client counts as one.

    Without noise a row is divided by the clients that contribute to it, and changes where they are at least
    `min_contributors`. Who they are follows from the plan, for clients send every expert that they hold, zeros where
    nothing was trained.

    With noise both numbers are `Noise.expected`. How many really came would tell of one client's coming what the noise
    on the sums does not hide, whether it divides them or decides what is frozen.

    Attributes:
        clip_norm: C, over all tensors of a client together.
        kind: `per-expert`; or `fedavg`, which divides every row by the clients of the whole round.
        within: clients that did not have to be clipped.
    """

    shapes: Mapping[str, torch.Size]
    min_contributors: int
    clip_norm: float = math.inf
    kind: str = "per-expert"
    noise: Noise | None = None
    sums: Tensors = field(default_factory=dict)
    contributors: Tensors = field(default_factory=dict)
    num_clients: int = 0
    within: int = 0
    last_client: int = -1

    def add(self, update: ClientUpdate) -> None:
        """Add one client; clients must come in ascending `client_id` order."""
        assert update.client_id > self.last_client, "updates must arrive in client_id order"
        self.last_client = update.client_id
        self.num_clients += 1
        deltas = {name: delta.double() for name, delta in update.tensors.items()}
        self.within += joint_norm(deltas) <= self.clip_norm
        for name, delta in clipped(deltas, self.clip_norm).items():
            block, shape = names.block_of(name), self.shapes[name]
            total = self.sums.setdefault(name, torch.zeros(shape, dtype=torch.float64))
            count = self.contributors.setdefault(name, zero_counts(name, shape))
            rows = slice(None) if block is None else torch.tensor(update.experts[block], dtype=torch.long)
            total[rows] += delta
            count[rows] += 1

    def mean(self) -> tuple[Tensors, Tensors]:
        """See `Aggregator`; a tensor of which no row is to change is left out."""
        counts, everyone = self.contributors, float(self.num_clients)
        if self.noise is not None:
            self.noise.announce()
            counts, everyone = self.noise.expected, self.noise.expected_clients
        changes = {name: count >= self.min_contributors for name, count in sorted(counts.items())}
        changes = {name: rows for name, rows in changes.items() if rows.any()}
        deltas = {}
        for name, rows in changes.items():
            divisor = counts[name] if self.kind == "per-expert" else torch.full_like(counts[name], everyone)
            total = self._released(name)
            beside = (-1, *[1] * (total.dim() - 1))
            deltas[name] = (total / divisor.view(beside)).where(rows.view(beside), 0.0)
        return deltas, changes

    def _released(self, name: str) -> Tensor:
        """The sum of a tensor, zeros if nobody sent it, with the noise."""
        total = self.sums.get(name, torch.zeros(self.shapes[name], dtype=torch.float64))
        return total if self.noise is None else total + self.noise.std * self.noise.draw(total.shape)


def zero_counts(name: str, shape: torch.Size) -> Tensor:
    """Zeros, one for each row of a tensor that can be held apart: float64 [M], or [1]."""
    return torch.zeros(1 if names.block_of(name) is None else shape[0], dtype=torch.float64)


def holders(method: Method, state: ServerState, budgets: Mapping[int, Budget], training: Training) -> Tensors:
    """How many clients of the population send each row in a round that they are in, as `zero_counts`.

    It follows from the budgets and the residents, which no data has a say in while these are balanced.
    """
    sent: dict[Budget, list[str]] = {}
    members: Counter[Budget] = Counter()
    held: dict[tuple[Budget, int], Counter[int]] = defaultdict(Counter)
    for client_id, experts in method.assign(state, sorted(budgets)).items():
        budget = budgets[client_id]
        if budget not in sent:
            plan = ClientPlan(state.round + 1, client_id, 0, budget, experts, training)
            sent[budget] = list(method.widest_update(plan, method.download(state, plan)).tensors)
        members[budget] += 1
        for block, ids in experts.items():
            held[budget, block].update(ids)
    counts: Tensors = {}
    for budget, own in sent.items():
        for name in own:
            count = counts.setdefault(name, zero_counts(name, state.tensors[name].shape))
            block = names.block_of(name)
            found = {0: members[budget]} if block is None else held[budget, block]
            count[list(found)] += torch.tensor(list(found.values()), dtype=torch.float64)
    return counts


def aggregate_sums(
    method: Method, total: Aggregator, state: ServerState, updates: Iterable[ClientUpdate]
) -> tuple[ServerState, dict[str, Any]]:
    """The next state by this aggregator, which has nothing of single clients: no preferences, and the load of before.

    Args:
        method: one that can be told how updates are merged.
        total: has seen no update.

    Returns:
        the state, and of the diagnostics the one that follows from the plan.
    """
    merging: Any = method
    merged, diagnostics = replace(merging, merge=lambda _: total).aggregate(state, map(_with_shares, updates))
    told = {"experts_released": diagnostics["experts_trained"]} if "experts_trained" in diagnostics else {}
    return replace(merged, load=state.load, preferences=state.preferences), told


def _with_shares(update: ClientUpdate) -> ClientUpdate:
    """Methods read a share of each expert; here all are zero, which changes no load."""
    return replace(update, shares={block: (0.0,) * len(ids) for block, ids in update.experts.items()})
