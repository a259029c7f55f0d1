"""Chooses the rows of a client that are set aside for validation: never trained on, and in no feature statistics."""

from collections.abc import Sequence

import numpy as np

from fftmoe.data.ragged import Ragged
from fftmoe.rng import numpy_generator

FEWEST_DIVIDED = 5  # rows of a client that sets any aside


def num_held_out(num_rows: int, fraction: float) -> int:
    """Return how many of a client's rows are set aside: `fraction` of them, rounded, at least one, and never all.

    A client with fewer than `FEWEST_DIVIDED` rows trains on all of them.
    """
    return 0 if num_rows < FEWEST_DIVIDED else min(max(1, int(fraction * num_rows + 0.5)), num_rows - 1)


def held_out_places(labels: np.ndarray, fraction: float, client_id: int) -> np.ndarray:
    """Return the places of the rows that a client sets aside, ascending int64.

    It is a systematic sample of the rows in the order of their labels, in random order within a label: every row is as
    likely as any other, and every label has its share up to one row. All seeds of a recipe share it, because they must
    share their data.

    Args:
        labels: the strata of the client's rows, integers [N].
    """
    num_rows = len(labels)
    size = num_held_out(num_rows, fraction)
    if not size:
        return np.empty(0, dtype=np.int64)
    draws = numpy_generator(0, "held out", client_id)
    shuffled = draws.permutation(num_rows)
    ordered = shuffled[labels[shuffled].argsort(kind="stable")]
    places = ((np.arange(size) + draws.random()) * num_rows / size).astype(np.int64)
    return np.sort(ordered[places])


def with_held_out(rows: Sequence[np.ndarray], labels: np.ndarray, fraction: float) -> tuple[Ragged, Ragged]:
    """Divide every client's rows into those that it trains on, and those that it sets aside.

    Args:
        rows: by `client_id`, the rows of the client. labels: the strata of all rows.
    """
    kept, held = [], []
    for client_id, own in enumerate(rows):
        aside = np.zeros(len(own), dtype=bool)
        aside[held_out_places(labels[own], fraction, client_id)] = True
        kept.append(own[~aside])
        held.append(own[aside])
    return Ragged.of(kept), Ragged.of(held)
