"""Reads CSV: a header line, then rows whose cells are texts, exactly as the file has them."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fftmoe.data.names import distinct_names
from fftmoe.shown import count_of

SEPARATORS = ",;\t|"
_DECLARED = re.compile(rf"sep=([{SEPARATORS}])(\r\n|\r|\n)")
_LONGEST_CELL = 2**31 - 1  # characters


def parse_tsv(text: str) -> tuple[Mapping[str, Sequence[str]], int]:
    """Parse a CSV file whose cells are separated by tabs, whatever else its header line has; see `parse_csv`."""
    return parse_csv(text, "\t")


def parse_csv(text: str, separators: str = SEPARATORS) -> tuple[Mapping[str, Sequence[str]], int]:
    """Return the columns of a CSV file, and the number of its rows.

    Cells are separated by commas. If the header line has none, they are separated by the first of semicolon, tab and
    vertical bar that it has. A line `sep=;` before the header line, as spreadsheets write it, decides instead. A line
    without any character is no row, except in a file of one column, where it is an empty cell.

    Args:
        separators: those that the header line may have, the usual one first.

    Raises:
        ValueError: it is not such a file. The message is the end of a sentence that names the file.
    """
    with _long_cells():
        header, rows = _records(text, separators)
    distinct_names(header, "columns")
    if len(header) == 1:
        rows = [row or [""] for row in rows]
    else:
        rows = [row for row in rows if row]
    if set(map(len, rows)) - {len(header)}:
        number, row = next((n, row) for n, row in enumerate(rows, start=1) if len(row) != len(header))
        raise ValueError(
            f"row {number} has {count_of(len(row), 'cell')} and the header line {len(header)}; correct it, or put "
            "cells that contain a separator between double quotes"
        )
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}, len(rows)


def _records(text: str, separators: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and all records after it."""
    separator = _separator(text, separators)
    if declared := _DECLARED.match(text):
        separator, text = declared[1], text[declared.end() :]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        records = list(reader)
    except csv.Error as error:
        reason = str(error).replace("'\t'", "a tab")
        raise ValueError(
            f"line {reader.line_num}: {reason}; write each double quote within a cell twice, and the cell between two"
        ) from error
    start = next((place for place, record in enumerate(records) if record), None)
    if start is None:
        raise ValueError("it is empty; it needs a header line and rows")
    return records[start], records[start + 1 :]


def _separator(text: str, separators: str) -> str:
    for separator in separators:
        try:
            header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), [])
        except csv.Error:
            continue  # reading all records tells where
        if len(header) > 1:
            return separator
    return separators[0]


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells of any length within the context; a limit of the csv module is for the whole process."""
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)
