"""One delta from the updates of a round in which some clients are malicious (docs/robustness.md).

Everything is decided unit by unit: the two layers of one expert, one row of a router, a shared expert, the shared
update of a projection, a LoRA module, the head. Malicious clients have a say in which experts they hold and can gather
on one, so every unit may have all f of a round among its contributors, however few those are.
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

KINDS = ("norm-bound", *MEANS)
FEW = ("bounded", "frozen")


def needed(kind: str, num_malicious: int) -> int:
    """Contributors that a unit must have to be merged by this kind of mean."""
    extra = 1 if kind == "norm-bound" else MEANS[kind][1]
    return 2 * num_malicious + extra if num_malicious else 1


@dataclass
class RobustMean:
    """An `Aggregator` that keeps the updates of the whole round: its statistics need all of them at once.

    Attributes:
        kind: `norm-bound`, or one of `robust_means.MEANS`.
        num_malicious: f, how many of a round's updates may be anything.
        few: a unit with fewer contributors than `needed` gets their `bounded` mean, or stays `frozen`.
    """

    shapes: Mapping[str, torch.Size]
    kind: str
    num_malicious: int
    few: str = "bounded"
    updates: dict[int, ClientUpdate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, valid in (("aggregator", self.kind, KINDS), ("few_contributors", self.few, FEW)):
            if value not in valid:
                raise InputError(f"unknown robustness.{name} {value!r}{did_you_mean(value, valid)}")

    def add(self, update: ClientUpdate) -> None:
        """Keep one client's update. They may come in any order, which has no say in the result."""
        assert update.client_id not in self.updates, f"client {update.client_id} came twice"
        self.updates[update.client_id] = update

    def mean(self) -> tuple[Tensors, Tensors]:
        """See `Aggregator`; a frozen unit is one that is not to change."""
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

    def _merge(self, sent: Sequence["Contribution"], num_rows: int) -> tuple[Tensor, Tensor]:
        """The merged rows, [num_rows, P], and which of them are to change."""
        bound = self._bound(sent)
        merged = torch.zeros(num_rows, sent[0].deltas_RP.shape[1], dtype=torch.float64)
        moved = torch.zeros(num_rows, dtype=torch.bool)
        contributed: dict[int, list[Tensor]] = defaultdict(list)
        for one in sent:
            for row, delta in zip(one.rows, one.deltas_RP, strict=True):
                contributed[row].append(delta)
        for row, own in contributed.items():
            delta = self._merge_unit(torch.stack(own), bound)
            if delta is not None:
                merged[row], moved[row] = delta, True
        return merged, moved

    def _merge_unit(self, deltas_NP: Tensor, bound: float | None) -> Tensor | None:
        """The delta of one unit; None where it is frozen."""
        enough = len(deltas_NP) >= needed(self.kind, self.num_malicious)
        if enough and self.kind != "norm-bound":
            return MEANS[self.kind][0](deltas_NP, self.num_malicious)
        if bound is None or not (enough or self.few == "bounded"):
            return None
        return bounded_mean(deltas_NP, bound, least=2 * self.num_malicious + 1)

    def _bound(self, sent: Sequence["Contribution"]) -> float | None:
        """The usual length of a change: the median over clients of the median over the units that each trained.

        A client has one vote however many experts it holds. None where so few vote that the malicious ones could
        choose the outcome.
        """
        votes = [one.deltas_RP.norm(dim=1).median() for one in sent if one.rows]
        return float(torch.stack(votes).median()) if len(votes) > 2 * self.num_malicious else None


class Contribution(NamedTuple):
    """What one client sent of the tensors of a group.

    Attributes:
        rows: the experts that the client trained; only 0 for tensors without experts.
        deltas_RP: the deltas of each of these rows, the tensors of the group side by side.
    """

    rows: tuple[int, ...]
    deltas_RP: Tensor


def joint_tensors(shapes: Mapping[str, torch.Size]) -> list[list[str]]:
    """The names in groups whose rows are judged as one unit: the tensors of one module, but each router by itself."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(shapes):
        router = names.is_expert(name) and names.parse(name).part == "router"
        groups[name if router else names.module_of(name)].append(name)
    return list(groups.values())


def _contribution(update: ClientUpdate, group: Sequence[str]) -> Contribution:
    block, tensors = names.block_of(group[0]), [update.tensors[name].double() for name in group]
    if block is None:
        return Contribution((0,), torch.cat([tensor.flatten() for tensor in tensors])[None])
    return Contribution(update.experts[block], torch.cat([tensor.flatten(1) for tensor in tensors], 1))
