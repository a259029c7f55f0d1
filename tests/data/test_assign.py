"""The divisions give what flwr-datasets' partitioners gave of the same examples in the same order.

`benchmarks/partitioners.py` recorded what they give, with flwr-datasets 0.6.1.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fftmoe.data import assign
from fftmoe.rng import numpy_generator

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "partitioners.json").read_text())
DIVISIONS = {"iid": assign.iid, "dirichlet": assign.dirichlet, "shards": assign.shards}


def held(owners: np.ndarray, num_clients: int) -> list[list[int]]:
    assert owners.dtype == np.int64
    return [np.flatnonzero(owners == client).tolist() for client in range(num_clients)]


def example(num: int, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the order in which the divisions take the examples."""
    labels = np.random.default_rng(seed).integers(num_labels, size=num)
    return labels, numpy_generator(seed, "order").permutation(num)


def recorded(*kinds: str) -> list[dict[str, Any]]:
    return [case for case in RECORDED if case["kind"] in kinds]


def owners_of(case: dict[str, Any]) -> list[int]:
    return [int(digit, 36) for digit in case["owners"]]


@pytest.mark.parametrize("case", recorded(*DIVISIONS), ids=lambda case: f"{case['kind']}-{case['size']}")
def test_a_division_is_the_partitioners(case: dict[str, Any]):
    num_clients, num, num_labels, seed = case["size"]
    labels, _ = example(num, num_labels, seed)
    settings = {name: case[name] for name in ("alpha", "shards_per_client") if name in case}
    owners = DIVISIONS[case["kind"]](labels, num_clients, seed, **settings)
    assert owners.dtype == np.int64
    assert owners.tolist() == owners_of(case)


@pytest.mark.parametrize("case", recorded("natural"), ids=lambda case: str(case["size"]))
def test_natural_is_the_partitioners(case: dict[str, Any]):
    values, owners = assign.natural(case["groups"])
    assert owners.dtype == np.int64
    assert owners.tolist() == owners_of(case)
    assert values == sorted(set(case["groups"]))


def test_every_division_was_recorded():
    assert {case["kind"] for case in RECORDED} == {*DIVISIONS, "natural"}


@pytest.mark.parametrize("seed", range(3))
def test_bernoulli_dirichlet_cuts_each_class_at_its_holders_shares(seed: int):
    num_clients, alpha, fraction = 7, 0.7, 0.4
    labels, _ = example(131, 5, seed)
    # As its docstring says, a client at a time.
    rng = numpy_generator(seed, "holders")
    holds = rng.random((num_clients, 5)) < fraction
    for client in np.flatnonzero(~holds.any(1)):
        holds[client, rng.integers(5)] = True
    for label in np.flatnonzero(~holds.any(0)):
        holds[rng.integers(num_clients), label] = True
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for label in range(5):
        holders = np.flatnonzero(holds[:, label])
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = (rng.dirichlet(np.full(len(holders), alpha)).cumsum()[:-1] * len(rows)).astype(int)
        for client, part in zip(holders, np.split(rows, ends), strict=True):
            parts[client] += part.tolist()
    owners = assign.bernoulli_dirichlet(labels, num_clients, seed, alpha=alpha, holder_fraction=fraction)
    assert held(owners, num_clients) == [sorted(part) for part in parts]
