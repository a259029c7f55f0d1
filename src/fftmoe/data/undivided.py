"""Reads data that nobody has divided into training and test rows.

That is one table, a folder with one table for each client, or a folder of images by class.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe.data.image_folders import CLIENT as CLIENT
from fftmoe.data.image_folders import read_image_folder
from fftmoe.data.read import SUFFIXES, read_table
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator

EVERY = 5  # of so many rows one is a test row
_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "training", "eval")


def read_undivided(place: Path) -> Table | None:
    """Return the rows of a file, or of all tables of a folder, or the images of a folder without tables.

    None for a folder whose files or folders are named after splits, and for one that holds neither.

    Args:
        place: a file or a folder that exists.

    Raises:
        InputError: a file cannot be read, or the tables of a folder do not fit together.
    """
    if place.is_file():
        return read_table(place)
    inside = sorted(place.iterdir())
    # A link that leads nowhere is no folder either: it is named when it is read, and no client is missing unseen.
    files = _tables_among([path for path in inside if _is_named_as_table(path) and not path.is_dir()])
    if any(path.stem.lower() in _SPLIT_NAMES for path in (files or inside)):
        return None
    if not files:
        return read_image_folder(place)
    if len(files) == 1:
        return read_table(files[0])
    return _one_table(place, [(path.stem, read_table(path)) for path in files])


def _tables_among(files: Sequence[Path]) -> list[Path]:
    """Return these files without those in JSON, which describe the tables, unless all are in JSON."""
    return [path for path in files if path.suffix.lower() != ".json"] or list(files)


def _is_named_as_table(path: Path) -> bool:
    return path.suffix[1:].lower() in SUFFIXES and not path.name.startswith(".")


def divide(table: Table, label: str | None, client: str | None) -> dict[str, Table]:
    """Choose one row in five at random as test rows, evenly over the clients and, within each, over the labels.

    Every label keeps a training row, and so does every client, unless all of them have one row only. The choice depends
    on the table only.

    Args:
        label: the column of labels; None, or a column of lists, divides by no label. client: the column that names the
            clients, or None.

    Raises:
        InputError: no row can be spared for the tests.
    """
    labels, clients = _spread_by(table, label), _spread_by(table, client)
    drawn = _test_places(labels, clients) or _test_places(labels, [None] * len(labels))
    if not drawn:
        raise InputError(
            f"{table.where}: every label has one row only, so none is left for tests; add rows, or put train.* and "
            "test.* into a folder and name that folder"
        )
    test = sorted(drawn)
    train = sorted(set(range(table.num_rows)) - drawn)
    return {
        "train": table.select(f"{table.where} (training rows)", train),
        "test": table.select(f"{table.where} (test rows)", test),
    }


def _test_places(labels: Sequence[Hashable], clients: Sequence[Hashable]) -> set[int]:
    """Return the places of the test rows."""
    shuffled = numpy_generator(0, "split").permutation(len(labels)).tolist()
    order = sorted(shuffled, key=lambda place: (str(clients[place]), str(labels[place])))  # stable: chance decides ties
    left_of_label, left_of_client = Counter(labels), Counter(clients)

    def can_spare(place: int) -> bool:
        return left_of_label[labels[place]] > 1 and left_of_client[clients[place]] > 1

    drawn: set[int] = set()
    owed = 0  # test rows that rare labels did not give
    for number, place in enumerate(order):
        owed += number % EVERY == EVERY // 2
        if owed and can_spare(place):
            owed -= 1
            left_of_label[labels[place]] -= 1
            left_of_client[clients[place]] -= 1
            drawn.add(place)
    return drawn or set(list(filter(can_spare, order))[:1])  # of very few rows, one


def _spread_by(table: Table, column: str | None) -> Sequence[Hashable]:
    """Return the values by which rows are spread evenly; all the same where there is no such column,
    or it holds lists.
    """
    values: Sequence[Any] = table.columns.get(column, ()) if column else ()
    if len(values) != table.num_rows or any(isinstance(value, list | dict | np.ndarray) for value in values):
        return [None] * table.num_rows
    return values


def _one_table(folder: Path, tables: Sequence[tuple[str, Table]]) -> Table:
    """Return one table of the columns that all of these have, and of the name of each row's own."""
    first_name, first = tables[0]
    shared = [column for column in first.columns if all(column in table.columns for _, table in tables)]
    if CLIENT in shared:
        raise InputError(
            f"{folder}: each file is a client of its name, and the files have a column {CLIENT!r} as well; rename that "
            "column, or put all rows into one file and name the column with partition.by"
        )
    for name, table in tables:
        if not shared:
            raise InputError(
                f"{folder}: the files share no column ({first_name} has {', '.join(first.columns)}; {name} has "
                f"{', '.join(table.columns)}); give the columns of all files the same names"
            )
        if any(table.class_names.get(column) != first.class_names.get(column) for column in shared):
            raise InputError(
                f"{folder}: {name} and {first_name} name the classes differently, and a class number must mean the "
                "same everywhere; write the names of the classes instead of numbers"
            )
    columns = {column: [value for _, table in tables for value in table.columns[column]] for column in shared}
    columns[CLIENT] = [name for name, table in tables for _ in range(table.num_rows)]
    row_names = [f"{row + 1} of {Path(table.where).name}" for _, table in tables for row in range(table.num_rows)]
    lacking = _lacking(tables, shared)
    where = f"{folder}{f' (without {lacking})' if lacking else ''}"
    classes = {column: names for column, names in first.class_names.items() if column in shared}
    return Table(where, columns, len(row_names), classes, folder, row_names)


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
