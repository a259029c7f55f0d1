"""Merges the updates of a round in which up to f clients are malicious (docs/robustness.md and docs/math.md).

Every unit is merged independently of the others. A unit is the two layers of one expert, one row of a router, a shared
expert, a shared low-rank update, a LoRA module, or the head. Malicious clients influence which experts they hold and
can all choose the same one, so all f of them may be among the contributors of any unit. With x_i the change of client i
and c the median length of a change, the bounded mean is

    sum_i x_i min(1, c / |x_i|) / max(n, 2 f + 1)

`robust_means.py` contains the other means, with their papers.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.methods.merge.robust_means import MEANS, bounded_mean
from fftmoe.records import ClientUpdate, Tensors, names

ROBUST_AGGREGATORS = ("norm-bound", *MEANS)
FEW_CONTRIBUTORS = ("bounded", "frozen")


def min_contributors(kind: str, num_malicious: int) -> int:
    """Return the number of contributors that a unit needs to be merged by this kind of mean."""
    extra = 1 if kind == "norm-bound" else MEANS[kind][1]
    return 2 * num_malicious + extra if num_malicious else 1


@dataclass
class RobustMean:
    """`RobustMean` is an `Aggregator` that keeps all updates of the round, because its statistics need all of them.

    Attributes:
        shapes: shapes of the global tensors by name.
        kind: `norm-bound`, or one of `robust_means.MEANS`.
        num_malicious: f, the number of updates in a round that may contain arbitrary values.
        few: rule for a unit with fewer contributors than `min_contributors`: take their `bounded` mean, or leave the
            unit `frozen`.
        updates: client_id -> update.
    """

    shapes: Mapping[str, torch.Size]
    kind: str
    num_malicious: int
    few: str = "bounded"
    updates: dict[int, ClientUpdate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("aggregator", self.kind, ROBUST_AGGREGATORS),
            ("few_contributors", self.few, FEW_CONTRIBUTORS),
        ):
            if value not in valid:
                raise InputError(f"unknown robustness.{name} {value!r}{did_you_mean(value, valid)}")

    def add(self, update: ClientUpdate) -> None:
        """Keep the update of one client; the order of the calls does not affect the result."""
        assert update.client_id not in self.updates, f"client {update.client_id} sent two updates"
        self.updates[update.client_id] = update

    def mean(self) -> tuple[Tensors, Tensors]:
        """Return deltas and changed rows, see `Aggregator.mean`; frozen units do not change."""
        deltas: Tensors = {}
        trained: Tensors = {}
        for group in joint_tensors(self.shapes):
            senders = [self.updates[c] for c in sorted(self.updates) if group[0] in self.updates[c].tensors]
            if senders:
                num_rows = self.shapes[group[0]][0] if names.is_expert(group[0]) else 1
                merged, moved = self._merge([_contribution(update, group) for update in senders], num_rows)
                sizes = [self.shapes[name].numel() // num_rows for name in group]
                for name, own in zip(group, merged.split(sizes, 1), strict=True):
                    deltas[name], trained[name] = own.reshape(self.shapes[name]), moved
        return deltas, trained

    def _merge(self, contributions: Sequence["Contribution"], num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the merged rows, float64 [num_rows, P], and which of them change, bool [num_rows]."""
        bound = self._bound(contributions)
        merged = torch.zeros(num_rows, contributions[0].deltas_RP.shape[1], dtype=torch.float64)
        moved = torch.zeros(num_rows, dtype=torch.bool)
        contributed: dict[int, list[Tensor]] = defaultdict(list)
        for one in contributions:
            for row, delta in zip(one.rows, one.deltas_RP, strict=True):
                contributed[row].append(delta)
        for row, own in contributed.items():
            delta = self._merge_unit(torch.stack(own), bound)
            if delta is not None:
                merged[row], moved[row] = delta, True
        return merged, moved

    def _merge_unit(self, deltas_NP: Tensor, bound: float | None) -> Tensor | None:
        """Return the delta of one unit, [P]; None if the unit does not change."""
        enough = len(deltas_NP) >= min_contributors(self.kind, self.num_malicious)
        if enough and self.kind != "norm-bound":
            return MEANS[self.kind][0](deltas_NP, self.num_malicious)
        if bound is None or not (enough or self.few == "bounded"):
            return None
        return bounded_mean(deltas_NP, bound, least=2 * self.num_malicious + 1)

    def _bound(self, contributions: Sequence["Contribution"]) -> float | None:
        """Return the typical length of a change: the median over clients of each client's median over its units.

        A client has one vote, whatever its number of experts. The result is None if there are at most 2 f votes,
        because the malicious clients could then determine the median.
        """
        votes = [one.deltas_RP.norm(dim=1).median() for one in contributions if one.rows]
        return float(torch.stack(votes).median()) if len(votes) > 2 * self.num_malicious else None


class Contribution(NamedTuple):
    """`Contribution` holds the deltas of one client for a group of tensors.

    Attributes:
        rows: the experts that the client trained; (0,) for tensors without experts.
        deltas_RP: the delta of each of these rows, with the tensors of the group concatenated.
    """

    rows: tuple[int, ...]
    deltas_RP: Tensor


def joint_tensors(shapes: Mapping[str, torch.Size]) -> list[list[str]]:
    """Group tensors whose rows form one unit: the tensors of one module, with routers in separate groups."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(shapes):
        router = names.is_expert(name) and names.parse(name).part == "router"
        groups[name if router else names.module_of(name)].append(name)
    return list(groups.values())


def _contribution(update: ClientUpdate, group: Sequence[str]) -> Contribution:
    """Return the client's deltas for a group of tensors, with the group's tensors concatenated."""
    block, tensors = names.block_of(group[0]), [update.tensors[name].double() for name in group]
    if block is None:
        return Contribution((0,), torch.cat([tensor.flatten() for tensor in tensors])[None])
    return Contribution(update.experts[block], torch.cat([tensor.flatten(1) for tensor in tensors], 1))
