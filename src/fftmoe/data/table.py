"""A table: the rows of one split as its file has them, column by column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """The rows of one split; images in them are not decoded.

    Attributes:
        where: their origin, for messages.
        columns: N values by name of the column. Every cell of a CSV file is a text; values of JSON lines and parquet
            have the types of the file, and None where there is no value.
        num_rows: N.
        class_names: the names of classes, by column, where the file has numbers of classes.
        folder: the folder that they were read from, which must hold the files that they name; None for data without
            a folder.
    """

    where: str
    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def of(cls, where: str, columns: Mapping[str, Sequence[Any]]) -> "Table":
        """A table of these columns, which have equal lengths."""
        return cls(where, columns, len(next(iter(columns.values()))))
