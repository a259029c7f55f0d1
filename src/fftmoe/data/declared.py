"""Marks rows whose label is not among the declared ones, in a run that must not show that a client has such a row."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fftmoe.data.columns import labels_of, lists_of
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fftmoe.shown import count_of


def with_declared_labels(table: Table, column: str, names: Sequence[str]) -> tuple[Table, np.ndarray]:
    """Give every row a declared label, and mark the rows that had another one or none.

    A marked row keeps its place, so that the number of rows does not tell how many rows have which label. Nothing may
    be learnt from it. The log of this process informs the owner of the rows.

    Args:
        column: holds a label, or a list of names. names: the declared ones.

    Returns:
        the table, and bool [N], True for the rows that do not count.
    """
    known, left_out = set(names), np.zeros(table.num_rows, dtype=bool)
    values: list[Any] = []
    of_lists = any(isinstance(value, list | tuple) for value in table.columns[column])
    for row, value in enumerate(table.columns[column]):
        if of_lists and not isinstance(value, list | tuple):  # no value, or one of another type
            left_out[row] = True
            values.append([])
            continue
        own = _names(replace(table, columns={column: [value]}, num_rows=1), column)
        left_out[row] = own is None or not set(own) <= known
        if not left_out[row]:
            values.append(value)
        elif isinstance(value, list | tuple):
            values.append([name if name in known else names[0] for name in own or [""] * len(value)])
        else:
            values.append(names[0])
    if left_out.any():
        logging.getLogger(__name__).warning(
            "%s: data.labels does not name the label of %d of %s; the run learns nothing from such rows",
            table.where,
            left_out.sum(),
            count_of(table.num_rows, "row"),
        )
    return replace(table, columns={**table.columns, column: values}), left_out


def _names(table: Table, column: str) -> Sequence[str] | None:
    """Return the names of the only row; None if it has none."""
    try:
        if isinstance(table.columns[column][0], list | tuple):
            return lists_of(table, "data.labels", column)[0]
        return labels_of(table, column)
    except InputError:
        return None
