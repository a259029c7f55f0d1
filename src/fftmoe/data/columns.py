"""The values of a table's columns, checked row by row: texts, labels, numbers, lists of names."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from fftmoe.data.read import Table
from fftmoe.errors import InputError


def extra_values(table: Table, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The values of those columns that the table has, N values each, unchecked."""
    return {column: list(table.rows[column]) for column in columns if column in table.rows.column_names}


def texts_of(table: Table, key: str, column: str) -> tuple[str, ...]:
    """The N texts of a column.

    Args:
        key: the recipe's key that names the column, for messages.

    Raises:
        InputError: a value is empty or not a text.
    """
    texts = tuple(table.rows[column])
    for row, value in enumerate(texts, start=1):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(f"{table.where}: column {column!r} is empty in row {row}; remove the row or fill it in")
        if not isinstance(value, str):
            raise InputError(
                f"{table.where}: column {column!r} holds {type(value).__name__} values such as {value!r} (row"
                f" {row}); texts must be strings: name another column with {key}"
            )
    return texts


def labels_of(table: Table, column: str) -> list[Any]:
    """The N labels of a column, with class numbers replaced by their names.

    Raises:
        InputError: a label is missing, or neither a text nor a whole number.
    """
    feature = table.rows.features[column]
    values: list[Any] = list(table.rows[column])
    for row, value in enumerate(values, start=1):
        missing = value is None or (isinstance(value, str) and not value.strip())
        if missing or (isinstance(feature, datasets.ClassLabel) and value == -1):
            raise InputError(
                f"{table.where}: column {column!r} has no label in row {row} (value {value!r}); remove the"
                " row or fill it in"
            )
        if not isinstance(value, str | int):
            raise InputError(
                f"{table.where}: column {column!r} holds {type(value).__name__} values such as {value!r} (row"
                f" {row}); labels must be strings or whole numbers: name another column with data.label"
            )
    return [feature.names[value] for value in values] if isinstance(feature, datasets.ClassLabel) else values


def numbers_of(table: Table, columns: Sequence[str]) -> Tensor:
    """The finite numbers of T columns, float32 [N, T].

    Raises:
        InputError: a value is not a finite number.
    """
    found = [list(table.rows[column]) for column in columns]
    for column, values in zip(columns, found, strict=True):
        for row, value in enumerate(values, start=1):
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(
                    f"{table.where}: column {column!r} holds {value!r:.50} in row {row}, which is not a finite number; "
                    "correct or remove the row, or name another column with data.targets"
                )
    return torch.tensor(found, dtype=torch.float32).T.contiguous()


def lists_of(table: Table, key: str, column: str) -> list[list[str]]:
    """The lists of names of a column, with class numbers replaced by their names.

    Args:
        key: the recipe's key that names the column, for messages.

    Raises:
        InputError: a row does not hold a list of names.
    """
    feature = getattr(table.rows.features[column], "feature", None)
    named = feature.names if isinstance(feature, datasets.ClassLabel) else None
    lists: list[list[str]] = []
    for row, value in enumerate(table.rows[column], start=1):
        own = list(value) if isinstance(value, list | tuple | np.ndarray) else None
        if own is None or not all(isinstance(item, str | int) for item in own):
            raise InputError(
                f"{table.where}: column {column!r} holds {value!r:.50} in row {row}, which is not a list of names; "
                f"lists are read from .parquet and .jsonl files: correct the row, or name another column with {key}"
            )
        lists.append([named[item] if named and isinstance(item, int) else str(item) for item in own])
    return lists
