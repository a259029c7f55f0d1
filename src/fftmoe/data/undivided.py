"""Reads data that nobody has divided into training and test rows.

That is one table, a folder with one table for each client, which may lie in a folder of the client's name, or a folder
of images by class.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe.data.image_folders import CLIENT as CLIENT
from fftmoe.data.image_folders import read_image_folder
from fftmoe.data.joined_tables import require_rows, table_of_clients
from fftmoe.data.packed_files import file_stem
from fftmoe.data.read import is_table, names_images, read_table, split_of, tables_in
from fftmoe.data.table import Table
from fftmoe.data.text_encodings import BY_RECIPE, TextEncoding
from fftmoe.errors import InputError
from fftmoe.rng import numpy_generator

RowNames = tuple[Hashable, ...]

EVERY = 5  # of so many rows one is a test row


def read_undivided(place: Path, encoding: TextEncoding = BY_RECIPE) -> Table | None:
    """Return the rows of a file, or of all tables of a folder, or the images of a folder without tables.

    None for a folder whose files or folders are named after splits, and for one that holds neither.

    Args:
        place: a file or a folder that exists. encoding: of its text files.

    Raises:
        InputError: a file cannot be read, or the tables of a folder do not fit together.
    """
    if place.is_file():
        return read_table(place, encoding)
    inside = sorted(place.iterdir())
    # A link that leads nowhere is no folder either: it is named when it is read, and no client is missing unseen.
    files = tables_in(place)
    if any(split_of(path) for path in (files or inside)):
        return None
    if not files:
        if _tables_name_images(inside, encoding):
            return _tables_of_folders(inside, place, encoding)
        return read_image_folder(place) or _tables_of_folders(inside, place, encoding)
    if len(files) == 1:
        return read_table(files[0], encoding)
    _check_no_splits(place, files)
    return table_of_clients(place, require_rows([(file_stem(path), read_table(path, encoding)) for path in files]))


def _tables_name_images(inside: Sequence[Path], encoding: TextEncoding) -> bool:
    """Return whether two of these folders have a table, and the first one names images in its folder."""
    folders = (path for path in inside if path.is_dir() and not path.name.startswith("."))
    found = [own[0] for own in map(tables_in, folders) if own]
    return len(found) > 1 and names_images(found[0], encoding)


def _tables_of_folders(inside: Sequence[Path], place: Path, encoding: TextEncoding) -> Table | None:
    """Return the rows of the tables in these folders, each of which is a client; None if they hold splits.

    Raises:
        InputError: a folder has several tables, or one of a kind that is not read.
    """
    folders = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    tables = {folder.name: tables_in(folder) for folder in folders}
    tables = {name: own for name, own in tables.items() if own}
    if len(tables) < 2 or any(split_of(path) for own in tables.values() for path in own):
        return None
    for folder in folders:
        if not any(map(is_table, filter(Path.is_file, sorted(folder.iterdir())))):  # refuses other kinds of tables
            raise InputError(f"{folder} has no table, and the other folders in {place} have one for a client; move it")
    for name, (first, *others) in tables.items():
        if others:
            raise InputError(
                f"{place / name} holds {first.name} and {others[0].name}, and the folder of a client has one table; "
                "put the rows into one, or name them train.* and test.*"
            )
    found = [(name, read_table(first, encoding)) for name, [first] in tables.items()]
    return table_of_clients(place, require_rows(found))


def _check_no_splits(place: Path, files: Sequence[Path]) -> None:
    """Check that no files are training and test rows under other names, which would be taken for clients.

    Raises:
        InputError: two are.
    """
    words = {path: set(re.split(r"[^a-z]+", file_stem(path).lower())) for path in files}
    train, test = ([path.name for path in files if kind in words[path]] for kind in ("train", "test"))
    if train and test:
        raise InputError(
            f"{place} holds {train[0]} and {test[0]}, which are named after splits, and each file of a folder without "
            "train.* and test.* is a client; rename them"
        )


def divide(table: Table, label: str | None, client: str | None) -> dict[str, Table]:
    """Choose one row in five at random as test rows, evenly over the clients and, within each, over the labels.

    Every label keeps a training row, also each label or tag of a list, and so does every client, unless all of them
    have one row only. The choice depends on the table only.

    Args:
        label: the column of labels, or of lists, over which rows are not spread evenly; None divides by no label.
        client: the column that names the clients, or None.

    Raises:
        InputError: no row can be spared for the tests.
    """
    labels, clients = _spread_by(table, label), _spread_by(table, client)
    names = _names(table, label) if label else [()] * table.num_rows
    drawn = _test_places(labels, clients, names) or _test_places(labels, [None] * len(labels), names)
    if not drawn:
        folder = "put train.* and test.* into a folder and name that folder"
        if table.num_rows < 2:
            raise InputError(f"{table.where}: it has one row, and none is left for tests; add rows, or {folder}")
        raise InputError(
            f"{table.where}: every row has a label in column {label!r} that no other row has, so none is left for "
            f"tests; if that is not the column of labels, name it with data.label (--label), else add rows, or {folder}"
        )
    test = sorted(drawn)
    train = sorted(set(range(table.num_rows)) - drawn)
    return {
        "train": table.select(f"{table.where} (training rows)", train),
        "test": table.select(f"{table.where} (test rows)", test),
    }


def _test_places(labels: Sequence[Hashable], clients: Sequence[Hashable], names: Sequence[RowNames]) -> set[int]:
    """Return the places of the test rows.

    Args:
        names: of each row, those that must be left in a training row.
    """
    shuffled = numpy_generator(0, "split").permutation(len(labels)).tolist()
    order = sorted(shuffled, key=lambda place: (str(clients[place]), str(labels[place])))  # stable: chance decides ties
    left_of_name, left_of_client = Counter(name for own in names for name in own), Counter(clients)

    def can_spare(place: int) -> bool:
        return left_of_client[clients[place]] > 1 and all(left_of_name[name] > 1 for name in names[place])

    drawn: set[int] = set()
    owed = 0  # test rows that rare labels did not give
    for number, place in enumerate(order):
        owed += number % EVERY == EVERY // 2
        if owed and can_spare(place):
            owed -= 1
            left_of_name.subtract(names[place])
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


def _names(table: Table, label: str) -> Sequence[RowNames]:
    """Return the names in each row of the column of labels: its label, or the different ones of its list."""
    values: Sequence[Any] = table.columns.get(label, ())
    if len(values) != table.num_rows or any(isinstance(value, dict) for value in values):
        return [()] * table.num_rows
    return [tuple({_name(item) for item in value}) if _is_list(value) else (value,) for value in values]


def _name(item: Any) -> Hashable:
    """Return an item of a list, or how it is written if it is itself a list; such items are refused later."""
    return item if isinstance(item, Hashable) else repr(item)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)
