"""The divisions behind `make_partition`: flwr-datasets' partitioners on tables of indices, and our own.

Every function gives one int64 index array per client; together they cover 0..N-1 exactly once.
"""

import warnings
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from fftmoe.rng import derive, numpy_generator

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

# flwr_datasets is imported inside the functions: it takes seconds, because it brings plotting libraries.
# Its partitioners send no telemetry; only its FederatedDataset and its plots do, which are not used here.


def iid(labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
    """Random division into sizes that differ by one at most."""
    from flwr_datasets.partitioner import IidPartitioner

    # The partitioner itself cuts the rows in the order they come, so randomness has to be in that order.
    rows = numpy_generator(seed, "order").permutation(len(labels))
    return _divide(IidPartitioner(num_clients), rows)


def dirichlet(labels: np.ndarray, num_clients: int, seed: int, *, alpha: float) -> list[np.ndarray]:
    """Each class divided by its own draw from Dirichlet(alpha); clients may be empty."""
    from flwr_datasets.partitioner import DirichletPartitioner

    rows = numpy_generator(seed, "order").permutation(len(labels))
    partitioner = DirichletPartitioner(
        num_partitions=num_clients,
        partition_by="label",
        alpha=float(alpha),
        # Drawing again is the caller's, who can then say which client stayed too small.
        min_partition_size=0,
        self_balancing=False,
        shuffle=False,
        seed=derive(seed, "shares"),
    )
    return _divide(partitioner, rows, label=labels[rows])


def shards(labels: np.ndarray, num_clients: int, seed: int, *, shards_per_client: int) -> list[np.ndarray]:
    """Label-sorted examples cut into `num_clients * shards_per_client` shards, dealt out at random.

    Needs at least one example per shard to leave no client empty; shard sizes differ by one at most.
    """
    from flwr_datasets.partitioner import ShardPartitioner

    shuffled = numpy_generator(seed, "order").permutation(len(labels))
    by_label = shuffled[labels[shuffled].argsort(kind="stable")]
    pieces = np.array_split(by_label, num_clients * shards_per_client)
    # The partitioner rounds the shard size down and drops what is left over. One row per shard loses nothing.
    partitioner = ShardPartitioner(
        num_partitions=num_clients,
        partition_by="shard",
        num_shards_per_partition=shards_per_client,
        shard_size=1,
        shuffle=False,
        seed=derive(seed, "deal"),
    )
    numbers = np.arange(len(pieces))
    with warnings.catch_warnings():
        # datasets sorts the table with an argument that pyarrow 25 deprecates; nothing here can change that.
        warnings.filterwarnings("ignore", message=".*null_placement", category=FutureWarning)
        dealt = _divide(partitioner, numbers, shard=numbers)
    return [np.concatenate([pieces[shard] for shard in held]) for held in dealt]


def natural(groups: Sequence[Hashable]) -> tuple[list[Any], list[np.ndarray]]:
    """The distinct groups in sorted order, and the examples of each."""
    # NaturalIdPartitioner draws a progress bar that cannot be switched off; groups of one id are the same.
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    values: list[Any] = sorted(set(groups))  # type: ignore[type-var]
    codes = {value: code for code, value in enumerate(values)}
    partitioner = GroupedNaturalIdPartitioner("group", group_size=1, sort_unique_ids=True)
    rows = np.arange(len(groups))
    return values, _divide(partitioner, rows, group=np.array([codes[group] for group in groups]))


def bernoulli_dirichlet(
    labels: np.ndarray, num_clients: int, seed: int, *, alpha: float, holder_fraction: float
) -> list[np.ndarray]:
    """Each client holds each class with probability `holder_fraction`; its holders divide it by Dirichlet(alpha).

    A client that drew no class is given one, and a class that nobody drew one holder, chosen uniformly. Clients
    may still be empty, because a share may be too small for one example.
    """
    rng = numpy_generator(seed, "holders")
    classes = np.unique(labels)
    holds_CL = rng.random((num_clients, len(classes))) < holder_fraction
    for client in np.flatnonzero(~holds_CL.any(1)):
        holds_CL[client, rng.integers(len(classes))] = True
    for column in np.flatnonzero(~holds_CL.any(0)):
        holds_CL[rng.integers(num_clients), column] = True
    held: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for column, label in enumerate(classes):
        holders = np.flatnonzero(holds_CL[:, column])
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(len(holders), float(alpha)))
        cuts = (shares.cumsum()[:-1] * len(rows)).astype(np.int64)
        for client, part in zip(holders, np.split(rows, cuts), strict=True):
            held[client].append(part)
    return [np.concatenate([np.zeros(0, np.int64), *parts]) for parts in held]


def _divide(partitioner: "Partitioner", rows: np.ndarray, **columns: np.ndarray) -> list[np.ndarray]:
    """What the partitioner makes of a table whose `row` column says which example each row stands for."""
    partitioner.dataset = datasets.Dataset.from_dict({"row": rows, **columns})
    parts = (partitioner.load_partition(client) for client in range(partitioner.num_partitions))
    return [np.asarray(part.with_format("numpy")["row"][:], dtype=np.int64) for part in parts]
