"""Merges updates so that the result reveals only sums over clients, with or without noise (docs/math.md, Privacy).

A row is one expert of a tensor, or a whole tensor without experts. Without noise ("sums only"), a row changes only if
enough clients of the round contribute to it:

    theta_m <- theta_m + eta * sum_n clip(Delta_nm) / h_m,   h_m contributors

With noise, the release satisfies client-level differential privacy (McMahan et al., arXiv 1710.06963):

    theta_m <- theta_m + eta * (sum_n clip(Delta_nm) + z C xi) / (q H_m),   xi ~ N(0, I)

One client moves the vector of all sums by at most C = `clip_norm`, and every number that changes receives noise.
Nothing else about the clients of the round (who they are, how many, which experts they trained) influences the result.
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
    """Return the Euclidean norm over all numbers of all tensors."""
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def clipped(tensors: Mapping[str, Tensor], most: float) -> Tensors:
    """Scale all tensors by one factor so that their joint norm is at most `most`.

    The result is zero if the norm is not finite.
    """
    norm = joint_norm(tensors)
    if not math.isfinite(norm):
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    return {name: tensor * (most / norm) for name, tensor in tensors.items()} if norm > most else dict(tensors)


@dataclass(frozen=True)
class Noise:
    """`Noise` holds the values that make sums a release under differential privacy.

    Attributes:
        std: z C, the standard deviation of the noise on every number of a sum.
        expected: name -> float64 [M] ([1] for a tensor without experts), the expected number of contributors to each
            row in a round. It follows from the balanced design and the sampling rate only.
        expected_clients: q N, the expected number of clients in a round.
        announce: called before any noise is drawn, so that the release is counted even if the process then ends.
        draw: source of normal numbers: the operating system's entropy, except in tests.
    """

    std: float
    expected: Tensors
    expected_clients: float
    announce: Callable[[], None]
    draw: Draw = normal


@dataclass
class PrivateSum:
    """`PrivateSum` is an `Aggregator` that computes the mean of clipped changes and weighs all clients equally.

    Without noise, the sum of a row is divided by the number of its contributors, and the row changes if there are at
    least `min_contributors`. The contributors follow from the plan, because clients send every expert that they hold,
    and zeros for an expert that they did not train.

    With noise, `Noise.expected` replaces the number of contributors in both places. The actual number would reveal
    whether a client took part, and the noise on the sums does not hide that.

    Attributes:
        shapes: shapes of the global tensors by name.
        min_contributors: the fewest contributors with which a row changes.
        clip_norm: C, the largest norm of a client's update over all of its tensors.
        kind: `per-expert`; or `fedavg`, which divides every row by the number of clients in the round.
        noise: the noise of the release; None for sums only.
        sums: the sums so far, float64.
        contributors: the number of contributors to each row so far, float64.
        num_clients: the number of updates so far.
        within: the number of updates that were not clipped.
        last_client: the client whose update was added last.
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
        """Add the update of one client; updates must arrive in ascending `client_id` order."""
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
        """Return deltas and changed rows as `Aggregator.mean`, without tensors in which no row changes."""
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
            per_row = (-1, *[1] * (total.dim() - 1))
            deltas[name] = (total / divisor.view(per_row)).where(rows.view(per_row), 0.0)
        return deltas, changes

    def _released(self, name: str) -> Tensor:
        """Return the sum of a tensor with noise; the sum is zero if no client sent the tensor."""
        total = self.sums.get(name, torch.zeros(self.shapes[name], dtype=torch.float64))
        return total if self.noise is None else total + self.noise.std * self.noise.draw(total.shape)


def zero_counts(name: str, shape: torch.Size) -> Tensor:
    """Return a zero count for each row: float64 [M], or [1] for a tensor without experts."""
    return torch.zeros(1 if names.block_of(name) is None else shape[0], dtype=torch.float64)


def holders(method: Method, state: ServerState, budgets: Mapping[int, Budget], training: Training) -> Tensors:
    """Count the clients of the population that send each row when they take part in a round.

    The counts have the form of `zero_counts`. They follow from the budgets and the residents. With the balanced design
    of residents they do not depend on any client's data.
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
    """Merge updates by this aggregator into a state that contains no value of a single client.

    The preferences and the load stay as they were before the round.

    Args:
        method: a method with the field `merge`.
        total: an aggregator without any update.
        state: the state before the round.
        updates: the updates of the round in `client_id` order.

    Returns:
        The next state, and the diagnostics that follow from the plan.
    """
    merging: Any = method
    merged, diagnostics = replace(merging, merge=lambda _: total).aggregate(state, map(_with_shares, updates))
    public = {"experts_released": diagnostics["experts_trained"]} if "experts_trained" in diagnostics else {}
    return replace(merged, load=state.load, preferences=state.preferences), public


def _with_shares(update: ClientUpdate) -> ClientUpdate:
    """Add a share of zero for each expert, because methods read shares; zeros leave the load unchanged."""
    return replace(update, shares={block: (0.0,) * len(ids) for block, ids in update.experts.items()})
