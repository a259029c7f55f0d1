"""Random updates, their robust mean, and the specification of robust means as loops, for the tests of these means.

The model has M experts of H x D in one block, and a head of C x D. f clients are malicious.
"""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from fftmoe.methods.merge.robust import ROBUST_AGGREGATORS, RobustMean
from fftmoe.methods.merge.robust_means import MEANS
from fftmoe.records import ClientUpdate, Tensors
from fftmoe.rng import generator, numpy_generator

M, H, D, C = 5, 3, 7, 2
SHAPES = {
    "blocks.1.router": torch.Size((M, D)),
    "blocks.1.up": torch.Size((M, H, D)),
    "blocks.1.down": torch.Size((M, H, D)),
    "head.weight": torch.Size((C, D)),
    "head.bias": torch.Size((C,)),
}
UNITS = (("blocks.1.down", "blocks.1.up"), ("blocks.1.router",), ("head.bias", "head.weight"))
FAR = 1e6
seeds = st.integers(0, 2**31)
few = st.sampled_from([0, 1, 2, 3])
every_kind = pytest.mark.parametrize("kind", ROBUST_AGGREGATORS)
every_mean = pytest.mark.parametrize("kind", MEANS)


def update(client_id: int, experts: Sequence[int], seed: int, size: float = 1.0, **changes: Any) -> ClientUpdate:
    """Make a random update of these experts, whose numbers have the standard deviation `size`."""
    source = generator(seed, "update", client_id)
    tensors = {}
    for name, shape in SHAPES.items():
        rows = len(experts) if name.startswith("blocks.") else shape[0]
        tensors[name] = size * torch.randn(rows, *shape[1:], generator=source)
    shares = tuple(1 / len(experts) for _ in experts)
    return replace(ClientUpdate(1, client_id, 1 + client_id, tensors, {1: tuple(experts)}, {1: shares}), **changes)


def cohort(seed: int, num_clients: int) -> list[ClientUpdate]:
    """Make the updates of clients that trained random sets of experts, which may be empty."""
    random = numpy_generator(seed, "cohort")
    pools = [sorted(random.choice(M, int(random.integers(0, M + 1)), replace=False).tolist()) for _ in range(99)]
    return [update(n, pools[n], seed, size=float(random.uniform(0.5, 2))) for n in range(num_clients)]


def merged(updates: Sequence[ClientUpdate], kind: str, f: int, few: str = "bounded") -> tuple[Tensors, Tensors]:
    total = RobustMean(SHAPES, kind, f, few)
    for one in updates:
        total.add(one)
    return total.mean()


def changes_of(updates: Sequence[ClientUpdate], unit: Sequence[str], expert: int) -> list[Tensor]:
    """Return the change of a unit by each client that trained it, as one vector; the head ignores `expert`."""
    found = []
    for one in updates:
        if unit[0].startswith("head."):
            found.append(torch.cat([one.tensors[name].double().flatten() for name in unit]))
        elif expert in one.experts[1]:
            place = one.experts[1].index(expert)
            found.append(torch.cat([one.tensors[name][place].double().flatten() for name in unit]))
    return found


def result_of(deltas: Tensors, unit: Sequence[str], expert: int) -> Tensor:
    own = [deltas[name] if name.startswith("head.") else deltas[name][expert] for name in unit]
    return torch.cat([part.flatten() for part in own])


def loop_mean(kind: str, vectors: Sequence[Tensor], f: int) -> Tensor:
    n, size = len(vectors), len(vectors[0])
    if kind == "multi-krum":
        scores = []
        for i, own in enumerate(vectors):
            squared = sorted(
                sum((a - b) ** 2 for a, b in zip(own.tolist(), other.tolist(), strict=True))
                for j, other in enumerate(vectors)
                if j != i
            )
            scores.append((sum(squared[: n - f - 2]), i))
        chosen = [i for _, i in sorted(scores)[: n - f]]
        return sum((vectors[i] for i in sorted(chosen)), torch.zeros(size, dtype=torch.float64)) / len(chosen)
    result = []
    for p in range(size):
        values = sorted(float(vector[p]) for vector in vectors)
        result.append(statistics.median(values) if kind == "median" else statistics.fmean(values[f : n - f]))
    return torch.tensor(result, dtype=torch.float64)


def loop_bound(updates: Sequence[ClientUpdate], unit: Sequence[str]) -> list[float]:
    """Return the votes for the bound: each client's median length over its units."""
    votes = []
    for one in updates:
        norms = sorted(
            float(v.norm()) for m in range(M if unit[0][0] == "b" else 1) for v in changes_of([one], unit, m)
        )
        votes += [statistics.median_low(norms)] if norms else []
    return votes


def loop_merge(updates: Sequence[ClientUpdate], kind: str, f: int, few: str, unit: Sequence[str], m: int) -> Any:
    """Return the delta of a unit, or None if it does not change."""
    vectors, votes = changes_of(updates, unit, m), loop_bound(updates, unit)
    least = {"norm-bound": 2 * f + 1, "trimmed-mean": 2 * f + 1, "median": 2 * f + 1, "multi-krum": 2 * f + 3}[kind]
    if not vectors:
        return None
    if f == 0 or len(vectors) >= least:
        if kind != "norm-bound":
            return loop_mean(kind, vectors, f)
    elif few == "frozen":
        return None
    if len(votes) < 2 * f + 1:
        return None
    bound = statistics.median_low(votes)
    return sum(v * min(1.0, bound / float(v.norm())) for v in vectors) / max(len(vectors), 2 * f + 1)
