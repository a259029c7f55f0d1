"""Record how the partitioners of flwr-datasets divide random labels, for tests/data/test_assign.py.

    python benchmarks/partitioners.py > tests/data/partitioners.json

Needs flwr-datasets 0.6.1, which wants an old version of datasets; so it is no dependency, not even of the tests. Run it
in an environment of its own: `pip install . flwr-datasets==0.6.1`.
"""

import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np

from fftmoe.rng import derive, numpy_generator

# Clients, examples, labels, seed: one client, more clients than labels, fewer examples than shards, a rare label.
SIZES = ((1, 13, 2, 3), (2, 17, 1, 5), (3, 31, 2, 7), (5, 53, 3, 11), (7, 97, 5, 13), (11, 23, 3, 2), (13, 131, 4, 17))
ALPHAS, SHARDS = (0.03, 0.5, 20.0), (1, 2, 3)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # one for each client


def example(num: int, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the order in which the divisions take the examples."""
    labels = np.random.default_rng(seed).integers(num_labels, size=num)
    return labels, numpy_generator(seed, "order").permutation(num)


def divided(partitioner: Any, rows: np.ndarray, **columns: np.ndarray) -> list[list[int]]:
    """What a partitioner makes of a table whose `row` says which example each row stands for."""
    partitioner.dataset = datasets.Dataset.from_dict({"row": rows, **columns})
    return [partitioner.load_partition(client)["row"][:] for client in range(partitioner.num_partitions)]


def owners(parts: list[list[int]], num: int) -> str:
    """The digit of the client that holds each example."""
    found = {row: DIGITS[client] for client, part in enumerate(parts) for row in part}
    return "".join(found[row] for row in range(num))


def cases() -> Iterator[dict[str, Any]]:
    """Every division of every size."""
    from flwr_datasets import partitioner  # pyright: ignore[reportMissingImports]

    for size in SIZES:
        num_clients, num, num_labels, seed = size
        labels, order = example(num, num_labels, seed)
        parts = divided(partitioner.IidPartitioner(num_clients), order)
        yield {"kind": "iid", "size": size, "owners": owners(parts, num)}
        for alpha in ALPHAS:
            options = {"min_partition_size": 0, "self_balancing": False, "shuffle": False}
            shares = partitioner.DirichletPartitioner(
                num_clients, partition_by="label", alpha=alpha, seed=derive(seed, "shares"), **options
            )
            parts = divided(shares, order, label=labels[order])
            yield {"kind": "dirichlet", "size": size, "alpha": alpha, "owners": owners(parts, num)}
        for shards in SHARDS:
            # The partitioner gets one row for each shard, so that its rounding loses nothing.
            pieces = np.array_split(order[labels[order].argsort(kind="stable")], num_clients * shards)
            numbers = np.arange(num_clients * shards)
            dealer = partitioner.ShardPartitioner(
                num_clients, "shard", shards, shard_size=1, shuffle=False, seed=derive(seed, "deal")
            )
            dealt = divided(dealer, numbers, shard=numbers)
            parts = [np.concatenate([pieces[shard] for shard in held]).tolist() for held in dealt]
            yield {"kind": "shards", "size": size, "shards_per_client": shards, "owners": owners(parts, num)}
        groups = np.array(["dew", "ash", "elm", "bay", "cod"])[labels]
        natural = partitioner.GroupedNaturalIdPartitioner("group", group_size=1, sort_unique_ids=True)
        parts = divided(natural, np.arange(num), group=groups)
        yield {"kind": "natural", "size": size, "groups": groups.tolist(), "owners": owners(parts, num)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    sys.stdout.write("[\n" + ",\n".join(json.dumps(case) for case in cases()) + "\n]\n")
