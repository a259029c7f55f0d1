"""Makes one table of several files: of one for each client, or of the parts of a split."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from fftmoe.data.first_line import listed_names, value_among_names
from fftmoe.data.image_folders import CLIENT
from fftmoe.data.table import Table
from fftmoe.errors import InputError


def table_of_clients(folder: Path, tables: Sequence[tuple[str, Table]]) -> Table:
    """Return one table of the columns that all of these have, and of the name of each row's own.

    Args:
        folder: which holds the files of all. tables: one for each client, with the client's name.

    Raises:
        InputError: they share no column, have a column `client`, or name classes differently.
    """
    in_order = sorted(tables, key=lambda named: named[0])
    for (name, table), (following, other) in pairwise(in_order):
        if name == following:
            raise InputError(
                f"{table.where} and {other.where} are both of the client {name!r}; keep one "
                "of them, or put the rows into one"
            )
    joined = joined_table(folder, tables)
    if CLIENT in joined.columns:
        raise InputError(
            f"{folder}: each file is a client of its name, and the files have a column {CLIENT!r} as well; rename that "
            "column, or put all rows into one file and name the column with partition.by"
        )
    clients = [name for name, table in tables for _ in range(table.num_rows)]
    return replace(joined, columns={**joined.columns, CLIENT: clients})


def require_rows(tables: Sequence[tuple[str, Table]]) -> Sequence[tuple[str, Table]]:
    """Return the tables of clients, all of which train.

    Raises:
        InputError: one has no rows, so its client would take no part, unseen.
    """
    for name, table in tables:
        if not table.num_rows:
            raise InputError(
                f"{table.where} has no row, so the client {name!r} has nothing to train on; remove the file"
            )
    return tables


def joined_table(folder: Path, tables: Sequence[tuple[str, Table]]) -> Table:
    """Return one table of the columns that all of these have, with the rows of the first one first.

    Args:
        folder: which holds the files of all. tables: each with its name, for messages.

    Raises:
        InputError: they share no column, or name classes differently.
    """
    first_name, first = tables[0]
    shared = [column for column in first.columns if all(column in table.columns for _, table in tables)]
    if not shared:
        raise InputError(_nothing_shared(folder, tables))
    for name, table in tables:
        if any(table.class_names.get(column) != first.class_names.get(column) for column in shared):
            raise InputError(
                f"{folder}: {name} and {first_name} name the classes differently, and a class number must mean the "
                "same everywhere; write the names of the classes instead of numbers"
            )
    columns = {column: [value for _, table in tables for value in table.columns[column]] for column in shared}
    row_names = [name for _, table in tables for name in _row_names(folder, table)]
    lacking = _lacking(tables, shared)
    where = f"{folder}{f' (without {lacking})' if lacking else ''}"
    classes = {column: names for column, names in first.class_names.items() if column in shared}
    folders = [table.folder_of(row) or folder for _, table in tables for row in range(table.num_rows)]
    return Table(where, columns, len(row_names), classes, folder, row_names, folders)


def _nothing_shared(folder: Path, tables: Sequence[tuple[str, Table]]) -> str:
    """Return the message about files that share no column: the first one, and the one that has none of the rest."""
    (first_name, first), (other_name, other) = tables[0], tables[-1]
    left = set(first.columns)
    for name, table in tables:
        left &= set(table.columns)
        if not left:
            other_name, other = name, table
            break
    value = next((found for _, table in tables if (found := value_among_names(table.columns))), None)
    remedy = "give the columns of all files the same names"
    if value is not None:
        remedy = (
            f"the first line names the columns, and {value!r} looks like a value: begin each file with a line of names"
        )
    return (
        f"{folder}: the files share no column ({first_name} has {listed_names(first.columns)}; {other_name} has "
        f"{listed_names(other.columns)}); {remedy}"
    )


def _row_names(folder: Path, table: Table) -> list[str]:
    """Return how messages name the rows of a table that lies in the folder, or below it."""
    file = Path(table.where).relative_to(folder).as_posix()
    return [f"{table.origin.row(row)} of {file}" for row in range(table.num_rows)]


def _lacking(tables: Sequence[tuple[str, Table]], shared: Sequence[str]) -> str:
    """Return the columns that only some of the files have, each with a file that lacks it."""
    some = {
        column: name
        for _, table in tables
        for column in table.columns
        for name, other in tables
        if column not in other.columns and column not in shared
    }
    return "; ".join(f"column {column!r}, which {name} lacks" for column, name in some.items())
