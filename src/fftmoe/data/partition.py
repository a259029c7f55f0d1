"""Decides which client holds which examples: disjoint covers of all examples, determined by the seed.

- `iid`: random, sizes equal up to one.
- `dirichlet`: each class is divided by a draw from Dirichlet(alpha).
- `shards`: examples sorted by label are cut into equal shards, and each client gets `shards_per_client` of them.
- `bernoulli-dirichlet`: each client holds each class with probability `holder_fraction`, every class has a holder and
  every client a class, and the holders of a class divide it by Dirichlet(alpha).
- `natural`: one client for each distinct group.

All but `bernoulli-dirichlet`, which is our own, divide as flwr-datasets' partitioners do (`fftmoe.data.assign`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fftmoe.data import assign
from fftmoe.data.ragged import Ragged
from fftmoe.errors import InputError, did_you_mean
from fftmoe.rng import derive
from fftmoe.shown import count_of

IID = "iid"  # the partition without skew
Divide = Callable[..., np.ndarray]
"""From labels [N], the number of clients C and a seed to the client of each example, integers [N] in 0..C-1.

A division of one's own that has a parameter `columns` also gets the columns of the data, by name, [N] each.
"""

# Draws of the random kinds before giving up on `min_examples`.
MAX_DRAWS = 100


@dataclass(frozen=True)
class PartitionKind:
    """Describes a kind of partition that a recipe can name.

    Attributes:
        parameters: the parameters of `make_partition` that it needs; it takes no others. All but `natural` also need
            `num_clients`.
        divide: computes the client of each example from labels, the number of clients, a seed and the parameters. None
            for `natural`, whose clients are given and not drawn.
        by_label: whether labels decide who holds what, so that there must be at least two.
        remedy: what to change if a client has too few examples.
        example: the kind with parameters as a person types it, `kind:value:value`.
    """

    parameters: tuple[str, ...]
    divide: Callable[..., np.ndarray] | None
    by_label: bool
    remedy: str
    example: str


_FEWER = "lower partition.num_clients or partition.min_examples"
KINDS: dict[str, PartitionKind] = {
    IID: PartitionKind((), assign.iid, False, _FEWER, "iid"),
    "dirichlet": PartitionKind(
        ("alpha",), assign.dirichlet, True, f"raise partition.alpha, or {_FEWER}", "dirichlet:0.1"
    ),
    "shards": PartitionKind(
        ("shards_per_client",),
        assign.shards,
        True,
        "lower partition.num_clients, partition.shards_per_client or partition.min_examples",
        "shards:2",
    ),
    "bernoulli-dirichlet": PartitionKind(
        ("alpha", "holder_fraction"),
        assign.bernoulli_dirichlet,
        True,
        f"raise partition.holder_fraction or partition.alpha, or {_FEWER}",
        "bernoulli-dirichlet:0.3:0.5",
    ),
    "natural": PartitionKind(
        ("groups",),
        None,
        False,
        "name a coarser column with partition.by, or lower partition.min_examples",
        "natural:author",
    ),
}


@dataclass(frozen=True)
class Partition:
    """Holds a disjoint cover of the examples, without an object for each client.

    Attributes:
        indices: by `client_id`, sorted int64 example indices.
        groups: by `client_id`, the name of the natural group; None if clients have only numbers.
    """

    indices: Ragged
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> tuple[str, ...]:
        """Return, by `client_id`, the name of the natural group, or the number as text; computed at each call."""
        return tuple(map(str, range(len(self)))) if self.groups is None else self.groups

    @property
    def sizes(self) -> np.ndarray:
        """Return the number of examples of each client, int64 [C]."""
        return self.indices.sizes

    def label_distribution(self, labels: np.ndarray, num_labels: int, clients: range | None = None) -> np.ndarray:
        """Return the share of each label among each client's examples, float64 [C, L]; rows sum to 1.

        Args:
            labels: integers [N], each below `num_labels`.
            num_labels: L.
            clients: the consecutive clients whose rows are returned; all when None.
        """
        clients = range(len(self)) if clients is None else clients
        ends = self.indices.offsets[clients.start : clients.stop + 1]
        sizes = np.diff(ends)
        # One count over pairs (client, label) instead of one for each client.
        pairs = np.arange(len(sizes)).repeat(sizes) * num_labels + labels[self.indices.flat[ends[0] : ends[-1]]]
        counts = np.bincount(pairs, minlength=len(sizes) * num_labels).reshape(len(sizes), num_labels)
        return counts / sizes[:, None]


def make_partition(
    kind: str,
    *,
    labels: np.ndarray,
    num_clients: int | None,
    seed: int,
    alpha: float | None = None,
    shards_per_client: int | None = None,
    holder_fraction: float | None = None,
    groups: Sequence[str] | None = None,
    min_examples: int | None = None,
    divide: Divide | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Partition:
    """Divide the examples among clients. The recipe checks the ranges of the parameters; here are their meanings.

    Args:
        kind: a key of `KINDS`, or the name of a plug-in. labels: integers [N].
        num_clients: at least 1; for `natural` None, or exactly the number of groups.
        seed: of the division; global random state is neither read nor changed.
        alpha: concentration, finite and > 0; smaller is more skewed.
        shards_per_client: at least 1. holder_fraction: in (0, 1].
        groups: the names of N groups.
        min_examples: the fewest examples of a client, at least 1. Random divisions are drawn again, up to 100 times,
            until they satisfy it. By default 2, and 1 for `natural`, where sizes are given and not drawn.
        divide: the division of a plug-in, which `kind` then names. columns: the data's, for such a division.

    Raises:
        InputError: unknown kind, a parameter that is missing or that the kind does not use, more clients than examples,
            or a client with too few examples.
    """
    if divide is None and kind not in KINDS:
        raise InputError(f"partition.kind={kind!r} is not known{did_you_mean(kind, KINDS)}")
    named = {"alpha": alpha, "shards_per_client": shards_per_client, "holder_fraction": holder_fraction}
    takes = () if divide is not None else KINDS[kind].parameters
    _check_parameters(kind, takes, {**named, "groups": groups})
    labels = np.asarray(labels, dtype=np.int64)
    own = KINDS[kind].divide if divide is None else partial(_checked_owners, divide, kind, columns or {})
    if own is None:
        assert groups is not None
        return _natural(groups, num_clients, len(labels), 1 if min_examples is None else min_examples)
    fewest = 2 if min_examples is None else min_examples
    num_clients = _checked_num_clients(kind, num_clients, len(labels), fewest)
    division: Divide = partial(own, **{name: named[name] for name in takes})
    num_draws = MAX_DRAWS if "alpha" in takes else 1  # the sizes of the others do not depend on the draw
    return _draw_until_enough(division, kind, labels, num_clients, seed, fewest, num_draws)


def _draw_until_enough(
    division: Divide, kind: str, labels: np.ndarray, num_clients: int, seed: int, fewest: int, num_draws: int
) -> Partition:
    """Return the first of `num_draws` divisions that gives every client at least `fewest` examples."""
    partition = None
    for draw in range(num_draws):
        owners = division(labels, num_clients, derive(seed, "partition", kind, draw))
        partition = Partition(Ragged.grouped(owners, num_clients))
        if partition.sizes.min() >= fewest:
            return partition
    assert partition is not None
    when = f" after {count_of(num_draws, 'draw')}" if num_draws > 1 else ""
    raise _too_few(partition, fewest, when, KINDS[kind].remedy if kind in KINDS else _FEWER)


class _Columns(dict[str, Sequence[Any]]):
    """Gives the columns of the data, by name."""

    def __init__(self, kind: str, columns: Mapping[str, Sequence[Any]]) -> None:
        super().__init__(columns)
        self.kind = kind

    def __missing__(self, name: str) -> Sequence[Any]:
        near = did_you_mean(name, self)
        raise InputError(
            f"partition.kind={self.kind} asks for a column {name!r}, which the data has not{near}; use it with data "
            "that have this column"
        )


def _checked_owners(
    divide: Divide,
    kind: str,
    columns: Mapping[str, Sequence[Any]],
    labels: np.ndarray,
    num_clients: int,
    seed: int,
) -> np.ndarray:
    """Return the result of a plug-in's division, checked."""
    wanted = {"columns": _Columns(kind, columns)} if _takes_columns(divide) else {}
    owners = np.asarray(divide(labels, num_clients, seed, **wanted))
    if owners.shape != labels.shape or not np.issubdtype(owners.dtype, np.integer):
        raise InputError(
            f"partition.kind={kind} returned {owners.dtype} {list(owners.shape)}; it must return the client of each"
            f" example, integers [{len(labels)}]"
        )
    if owners.min() < 0 or owners.max() >= num_clients:
        raise InputError(
            f"partition.kind={kind} returned clients {owners.min()} to {owners.max()}; there are 0 to {num_clients - 1}"
        )
    return owners.astype(np.int64)


def _takes_columns(divide: Divide) -> bool:
    try:
        return "columns" in inspect.signature(divide).parameters
    except (TypeError, ValueError):  # some functions that are written in C have no signature
        return False


def _too_few(partition: Partition, fewest: int, when: str, remedy: str) -> InputError:
    client = int(partition.sizes.argmin())
    return InputError(
        f"client {partition.names[client]} has {count_of(partition.sizes[client], 'example')}{when}, fewer than "
        f"partition.min_examples={fewest}; {remedy}"
    )


def _check_parameters(kind: str, takes: Sequence[str], given: dict[str, Any]) -> None:
    for name, value in given.items():
        shown = "partition.by" if name == "groups" else f"partition.{name}"
        if name in takes and value is None:
            raise InputError(f"partition.kind={kind} needs {shown}, which is not set; add it to the recipe")
        if name not in takes and value is not None:
            uses = ", ".join(takes) or "num_clients only"
            raise InputError(f"partition.kind={kind} does not use {shown}; remove it (it uses {uses})")


def _checked_num_clients(kind: str, num_clients: int | None, num_examples: int, fewest: int) -> int:
    if num_clients is None:
        raise InputError(f"partition.kind={kind} needs partition.num_clients, which is not set; add it to the recipe")
    if num_clients * fewest > num_examples:
        raise InputError(
            f"partition.num_clients={num_clients} with at least {count_of(fewest, 'example')} each needs "
            f"{count_of(num_clients * fewest, 'training example')}, but there are {num_examples}; lower "
            "partition.num_clients or partition.min_examples, or add data"
        )
    return num_clients


def _natural(groups: Sequence[str], num_clients: int | None, num_examples: int, fewest: int) -> Partition:
    if len(groups) != num_examples:
        raise ValueError(
            f"{count_of(len(groups), 'group')} for {count_of(num_examples, 'label')}; give one group per example"
        )
    values, owners = assign.natural(groups)
    partition = Partition(Ragged.grouped(owners, len(values)), tuple(values))
    if num_clients is not None and num_clients != len(values):
        raise InputError(
            f"partition.num_clients={num_clients}, but the column of partition.by has "
            f"{count_of(len(values), 'distinct value')}, one client each; remove partition.num_clients, or name "
            "another column"
        )
    if partition.sizes.min() < fewest:
        raise _too_few(partition, fewest, "", KINDS["natural"].remedy)
    return partition
