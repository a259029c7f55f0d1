"""Chooses the rows that the clients of an experiment set aside for validation (`data.validation`)."""

from dataclasses import dataclass, replace

import numpy as np

from fftmoe.config import Recipe
from fftmoe.data import FEWEST_DIVIDED, Examples, Partition, Ragged, num_held_out, with_held_out
from fftmoe.errors import InputError
from fftmoe.shown import count_of


@dataclass(frozen=True)
class HeldOut:
    """Holds the rows that clients have set aside.

    Attributes:
        rows: by `client_id`, the indices of a client's rows; none where clients are elsewhere.
        numbers: how many there are, int64 [C], which the server knows in any case.
    """

    rows: Ragged
    numbers: np.ndarray

    @property
    def clients(self) -> tuple[int, ...]:
        """Return the clients that have set rows aside, ascending."""
        return tuple(np.flatnonzero(self.numbers).tolist())


def hold_out(
    recipe: Recipe, train: Examples, partition: Partition, sizes: np.ndarray, remote: bool
) -> tuple[Partition, HeldOut]:
    """Divide every client's rows into those that it trains on, which the partition returned has, and the others.

    Args:
        sizes: integers [C], the rows of each client. remote: whether clients are elsewhere, with their rows.

    Raises:
        InputError: no client has enough rows.
    """
    fraction, none = recipe.data.validation, Ragged.of([np.empty(0, dtype=np.int64)] * len(partition))
    if fraction is None:
        return partition, HeldOut(none, np.zeros(len(partition), dtype=np.int64))
    numbers = np.array([num_held_out(int(size), fraction) for size in sizes], dtype=np.int64)
    if not numbers.any():
        raise InputError(
            f"data.validation={fraction:g} sets rows of clients aside, and none of the "
            f"{count_of(len(partition), 'client')} has {FEWEST_DIVIDED} of them or more; set data.validation=off"
        )
    if remote:
        return partition, HeldOut(none, numbers)
    kept, held = with_held_out(partition.indices, train.labels.numpy(), fraction)
    return replace(partition, indices=kept), HeldOut(held, numbers)
