"""The divisions give what flwr-datasets' partitioners give of the same examples in the same order."""

import warnings

import datasets
import numpy as np
import pytest
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    GroupedNaturalIdPartitioner,
    IidPartitioner,
    Partitioner,
    ShardPartitioner,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.data import assign
from fftmoe.rng import derive, numpy_generator

sizes = st.tuples(st.integers(1, 13), st.integers(13, 131), st.integers(1, 5), st.integers(0, 2**31))
few = settings(max_examples=15)


def divided(partitioner: Partitioner, rows: np.ndarray, **columns: np.ndarray) -> list[list[int]]:
    """What a partitioner makes of a table whose `row` says which example each row stands for, each client's sorted."""
    partitioner.dataset = datasets.Dataset.from_dict({"row": rows, **columns})
    parts = [partitioner.load_partition(client) for client in range(partitioner.num_partitions)]
    return [sorted(part["row"][:]) for part in parts]


def held(owners: np.ndarray, num_clients: int) -> list[list[int]]:
    assert owners.dtype == np.int64
    return [np.flatnonzero(owners == client).tolist() for client in range(num_clients)]


def example(num: int, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the order in which the divisions take the examples."""
    labels = np.random.default_rng(seed).integers(num_labels, size=num)
    return labels, numpy_generator(seed, "order").permutation(num)


@few
@given(sizes)
def test_iid_is_the_partitioners(size: tuple[int, int, int, int]):
    num_clients, num, num_labels, seed = size
    labels, order = example(num, num_labels, seed)
    assert held(assign.iid(labels, num_clients, seed), num_clients) == divided(IidPartitioner(num_clients), order)


@few
@given(sizes, st.sampled_from([0.03, 0.5, 20.0]))
def test_dirichlet_is_the_partitioners(size: tuple[int, int, int, int], alpha: float):
    num_clients, num, num_labels, seed = size
    labels, order = example(num, num_labels, seed)
    partitioner = DirichletPartitioner(
        num_clients,
        partition_by="label",
        alpha=alpha,
        min_partition_size=0,
        self_balancing=False,
        shuffle=False,
        seed=derive(seed, "shares"),
    )
    theirs = divided(partitioner, order, label=labels[order])
    assert held(assign.dirichlet(labels, num_clients, seed, alpha=alpha), num_clients) == theirs


@few
@given(sizes, st.integers(1, 3))
def test_shards_are_dealt_as_the_partitioner_deals(size: tuple[int, int, int, int], shards_per_client: int):
    num_clients, num, num_labels, seed = size
    labels, order = example(num, num_labels, seed)
    num_shards = num_clients * shards_per_client
    # The partitioner gets one row for each shard, so that its rounding loses nothing.
    pieces = np.array_split(order[labels[order].argsort(kind="stable")], num_shards)
    numbers = np.arange(num_shards)
    partitioner = ShardPartitioner(
        num_clients, "shard", shards_per_client, shard_size=1, shuffle=False, seed=derive(seed, "deal")
    )
    with warnings.catch_warnings():
        # datasets sorts the table with an argument that pyarrow 25 deprecates.
        warnings.filterwarnings("ignore", message=".*null_placement", category=FutureWarning)
        dealt = divided(partitioner, numbers, shard=numbers)
    theirs = [sorted(np.concatenate([pieces[shard] for shard in shards]).tolist()) for shards in dealt]
    assert held(assign.shards(labels, num_clients, seed, shards_per_client=shards_per_client), num_clients) == theirs


@few
@given(st.lists(st.sampled_from(["ash", "bay", "cod", "dew"]), min_size=1, max_size=31))
def test_natural_is_the_partitioners(groups: list[str]):
    values, owners = assign.natural(groups)
    partitioner = GroupedNaturalIdPartitioner("group", group_size=1, sort_unique_ids=True)
    assert held(owners, len(values)) == divided(partitioner, np.arange(len(groups)), group=np.array(groups))
    assert values == sorted(set(groups))


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
