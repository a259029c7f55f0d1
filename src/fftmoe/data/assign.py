"""Makes the divisions behind `make_partition`: those of flwr-datasets' partitioners, for any population, and our own.

The partitioners return one client at a time, which takes minutes for 100,000 clients. Here the same random draws give
all clients together, and the tests compare each division with its partitioner. Every function returns int64 [N], the
client of each example, from 0 to `num_clients - 1`.
"""

from collections.abc import Sequence

import numpy as np

from fftmoe.data.names import sorted_names
from fftmoe.rng import numpy_generator


def iid(labels: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
    """Return a random division into sizes that differ by at most one, as `IidPartitioner` on shuffled examples."""
    rows = numpy_generator(seed, "order").permutation(len(labels))
    return _placed(rows, _even_parts(len(labels), num_clients))


def dirichlet(labels: np.ndarray, num_clients: int, seed: int, *, alpha: float) -> np.ndarray:
    """Divide each class among the clients by its own draw from Dirichlet(alpha); clients may be empty.

    As `DirichletPartitioner` on shuffled examples, without its balancing and its minimum size: the caller draws again,
    and can say which client stayed too small.
    """
    rows = numpy_generator(seed, "order").permutation(len(labels))
    shuffled, random = labels[rows], numpy_generator(seed, "shares")
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = rows[shuffled == label]
        owners[own] = _parts_by_share(random.dirichlet(np.full(num_clients, float(alpha))), len(own))
    return owners


def shards(labels: np.ndarray, num_clients: int, seed: int, *, shards_per_client: int) -> np.ndarray:
    """Cut label-sorted examples into `num_clients * shards_per_client` shards, dealt out at random.

    Needs at least one example per shard so that no client is empty; shard sizes differ by at most one. Shards are dealt
    as by `ShardPartitioner`, which rounds the shard size down and drops the remaining examples.
    """
    shuffled = numpy_generator(seed, "order").permutation(len(labels))
    by_label = shuffled[labels[shuffled].argsort(kind="stable")]
    num_shards = num_clients * shards_per_client
    dealt = numpy_generator(seed, "deal").permutation(num_shards)
    holders = _placed(dealt, np.arange(num_shards) // shards_per_client)
    return _placed(by_label, holders[_even_parts(len(labels), num_shards)])


def natural(groups: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the distinct groups in the order of names, and the group of each example,
    as `GroupedNaturalIdPartitioner`.
    """
    values = sorted_names(groups)
    numbers = {value: number for number, value in enumerate(values)}
    return values, np.fromiter((numbers[group] for group in groups), dtype=np.int64, count=len(groups))


def bernoulli_dirichlet(
    labels: np.ndarray, num_clients: int, seed: int, *, alpha: float, holder_fraction: float
) -> np.ndarray:
    """Let each client hold each class with probability `holder_fraction`; its holders divide it by Dirichlet(alpha).

    A client that drew no class gets one, and a class that no client drew gets one holder, both chosen uniformly.
    Clients may still be empty, because a share may be too small for one example.
    """
    rng = numpy_generator(seed, "holders")
    classes = np.unique(labels)
    holds_CL = rng.random((num_clients, len(classes))) < holder_fraction
    for client in np.flatnonzero(~holds_CL.any(1)):
        holds_CL[client, rng.integers(len(classes))] = True
    for column in np.flatnonzero(~holds_CL.any(0)):
        holds_CL[rng.integers(num_clients), column] = True
    owners = np.empty(len(labels), dtype=np.int64)
    for column, label in enumerate(classes):
        holders = np.flatnonzero(holds_CL[:, column])
        rows = rng.permutation(np.flatnonzero(labels == label))
        owners[rows] = holders[_parts_by_share(rng.dirichlet(np.full(len(holders), float(alpha))), len(rows))]
    return owners


def _placed(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return an array with `values[i]` at `places[i]`; `places` is a permutation."""
    result = np.empty_like(values)
    result[places] = values
    return result


def _even_parts(num_examples: int, num_parts: int) -> np.ndarray:
    """Return the part of each example, int64 [N], ascending: sizes differ by at most one, larger parts first."""
    sizes = num_examples // num_parts + (np.arange(num_parts) < num_examples % num_parts)
    return np.arange(num_parts).repeat(sizes)


def _parts_by_share(shares: np.ndarray, num_examples: int) -> np.ndarray:
    """Return the part of each example, int64 [N], ascending: part c ends where `shares[: c + 1]` do, rounded down."""
    cuts = (shares.cumsum()[:-1] * num_examples).astype(np.int64)
    return cuts.searchsorted(np.arange(num_examples), side="right")
