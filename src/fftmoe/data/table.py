"""Defines a table: the rows of one split as its file has them, column by column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Says where rows come from, as messages say it.

    Attributes:
        where: the file, the split of a hub data set, or what a person typed.
        rows: the name of each row; empty: rows are named by their numbers from 1.
    """

    where: str
    rows: Sequence[str] = ()

    def __str__(self) -> str:
        return self.where

    def row(self, place: int) -> str:
        """Return how messages name the row at this place, counted from 0."""
        return self.rows[place] if self.rows else str(place + 1)


@dataclass(frozen=True)
class Table:
    """Holds the rows of one split; images in them are not decoded.

    Attributes:
        where: their origin, for messages.
        columns: N values by name of the column. Every cell of a CSV file is a text; values of JSON lines and parquet
            have the types of the file, and None where there is no value.
        num_rows: N.
        class_names: the names of classes, by column, where the file has numbers of classes.
        folder: the folder that they were read from, which must hold the files that they name; None for data without
            a folder.
        row_folders: the folder from which each row's names of files are meant, for a table that was made of others;
            empty: `folder`.
        row_names: how messages name each row, for a table that was made of other tables; empty: by its number from 1.
    """

    where: str
    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None
    row_names: Sequence[str] = ()
    row_folders: Sequence[Path] = ()

    @classmethod
    def of(cls, where: str, columns: Mapping[str, Sequence[Any]]) -> "Table":
        """Return a table of these columns, which have equal lengths."""
        return cls(where, columns, len(next(iter(columns.values()))))

    @property
    def origin(self) -> Origin:
        """Return where the rows come from, for messages about single rows."""
        return Origin(self.where, self.row_names)

    def folder_of(self, place: int) -> Path | None:
        """Return the folder from which the names of files in the row at this place are meant."""
        return self.row_folders[place] if self.row_folders else self.folder

    def select(self, where: str, places: Sequence[int]) -> "Table":
        """Return the rows at these places, in that order; messages name them as before.

        Args:
            where: their origin, for messages.
        """
        columns = {name: [values[place] for place in places] for name, values in self.columns.items()}
        row_names = [self.origin.row(place) for place in places]
        folders = [self.row_folders[place] for place in places] if self.row_folders else ()
        changes = {"columns": columns, "num_rows": len(places), "row_names": row_names, "row_folders": folders}
        return replace(self, where=where, **changes)
