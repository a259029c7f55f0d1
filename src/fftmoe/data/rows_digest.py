"""Says by one short value what was read from a source: two reads have the same value if a model is given the same."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fftmoe.data.columns import numbers_of, spelled
from fftmoe.data.examples import Examples
from fftmoe.data.images import ImageExamples
from fftmoe.data.table import Table


@dataclass(frozen=True)
class RowsDigest:
    """Holds the number of the rows of a split, and the SHA-256 of the columns that a run reads,
    as hexadecimal digits.
    """

    rows: int
    sha256: str


def digest_of_rows(
    table: Table, columns: Sequence[str], examples: Examples, numbers: Collection[str] = ()
) -> RowsDigest:
    """Return the digest of these columns of a table, row by row, in the order of `columns`.

    Other columns do not count, and neither does the format of the file: names count as they are read (`names.py`), and
    numbers by their value. An image counts by its pixels as the model
    gets them, because its row may only name a file.

    Args:
        examples: the examples that were made of the table. numbers: the columns that are read as numbers.
    """
    found = hashlib.sha256()
    if isinstance(examples, ImageExamples):
        pixels: Any = examples.pixels.detach().contiguous().flatten().view(torch.uint8).numpy()
        found.update(f"pixels {list(examples.pixels.shape)}\n".encode())
        found.update(pixels)
    for column in dict.fromkeys(columns):
        values = table.columns[column]
        if len(values) and isinstance(values[0], dict):  # images, which have been counted
            continue
        found.update(f"column {len(values)}\n".encode())
        for value in numbers_of(table, [column])[:, 0].tolist() if column in numbers else spelled(table, column):
            _add_value(found, value)
    return RowsDigest(table.num_rows, found.hexdigest())


def _add_value(found: Any, value: Any) -> None:
    """Add a value so that no two lists of values give the same bytes."""
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        found.update(f"t{len(data)} ".encode())
        found.update(data)
    elif isinstance(value, list | tuple | np.ndarray):
        found.update(f"l{len(value)} ".encode())
        for item in value:
            _add_value(found, item)
    else:
        found.update(f"v{value!r} ".encode())
