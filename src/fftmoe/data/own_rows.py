"""Finds whose the test rows are, where the data says it: the rows on which a client's own accuracy is measured."""

import hashlib
from collections.abc import Sequence

import numpy as np

from fftmoe.data.ragged import Ragged
from fftmoe.data.rows_digest import RowsDigest
from fftmoe.shown import count_of


def own_rows(clients: Sequence[str], owners: Sequence[str | None]) -> Ragged | None:
    """Return the test rows of each client, ascending; None if no row belongs to any of them.

    Args:
        clients: the names of the clients, in their order. owners: the name of each test row's client; None where the
            row names nobody.
    """
    place = {name: number for number, name in enumerate(clients)}
    of_rows = np.array([place.get(name, len(clients)) if name else len(clients) for name in owners], dtype=np.int64)
    if not (of_rows < len(clients)).any():
        return None
    grouped = Ragged.grouped(of_rows, len(clients) + 1)
    return Ragged(grouped.flat[: grouped.offsets[-2]], grouped.offsets[:-1])


def unowned_notes(rows: Ragged | None, num_rows: int, by: str) -> tuple[str, ...]:
    """Return a sentence about test rows that count for no client, and one about clients without test rows.

    Args:
        rows: the test rows of each client. num_rows: all test rows. by: the column that names their clients.
    """
    if rows is None:
        return (
            f"no test row belongs to a client of the training rows, by its column {by!r}, so no client is measured "
            "on test rows of its own",
        )
    lost, without = num_rows - len(rows.flat), int((rows.sizes == 0).sum())
    notes = []
    if lost:
        notes.append(
            f"no client of the training rows has {lost} of {count_of(num_rows, 'test row')}, by the column {by!r}; "
            "such rows count for the whole and for no client"
        )
    if without:
        notes.append(
            f"there are no test rows of their own for {without} of {count_of(len(rows), 'client')}, so nothing is "
            "measured for these alone"
        )
    return tuple(notes)


def owners_digest(owners: Sequence[str | None]) -> RowsDigest:
    """Return the number of test rows, and a digest of whose each is."""
    return RowsDigest(len(owners), hashlib.sha256(repr(list(owners)).encode("utf-8", "surrogatepass")).hexdigest())
