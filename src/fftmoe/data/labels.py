"""Turns labels into numbers: the classes of a data set, or the strata that divide examples of tasks without classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from fftmoe.data.columns import labels_of
from fftmoe.data.names import sorted_names
from fftmoe.data.sources import TRAIN_AND_TEST, SplitRequest
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fftmoe.shown import count_of

ALL = ("all",)  # the one stratum if nothing divides the examples
LABELS_IN_A_MESSAGE = 5


def number_classes(
    tables: Mapping[str, Table], column: str, request: SplitRequest = TRAIN_AND_TEST
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Number the labels of classification.

    Classes that the file names (`datasets.ClassLabel`) keep their names and their order. Other labels are numbered in
    the order of the distinct labels of the first requested split (`sorted_names`). A request can agree on others.

    Args:
        column: holds the labels.

    Returns:
        the labels, int64 [N], by split, and the names of the classes.

    Raises:
        InputError: a label is missing; it does not occur in training, or is not among the agreed ones; there is one
            class only.
    """
    labels = {split: labels_of(table, column) for split, table in tables.items()}
    first = request.splits[0]
    known = request.label_names or _classes(tables[first], column, labels[first])
    if len(known) < 2 and not request.evaluation:
        raise InputError(
            f"{tables[first].where}: column {column!r} holds one label only ({', '.join(map(repr, known))}); a"
            " classifier needs at least two: name another column with data.label"
        )
    if request.evaluation:
        _check_trained(tables[first].where, _classes(tables[first], column, labels[first]), known)
    numbers = {name: number for number, name in enumerate(known)}
    for split, values in labels.items():
        if unseen := [value for value in values if value not in numbers]:
            raise _unseen(unseen, tables[split].where, request)
    numbered = {split: np.array([numbers[name] for name in names], dtype=np.int64) for split, names in labels.items()}
    return numbered, tuple(numbers)


def _classes(table: Table, column: str, labels: Sequence[str]) -> Sequence[str]:
    """Return the classes that this table's labels define, in their order."""
    return table.class_names.get(column) or sorted_names(labels)


def _check_trained(where: str, classes: Sequence[str], trained: Sequence[str]) -> None:
    """Check that a run was trained on these classes, also on those that a table names and no row has."""
    if unknown := sorted(set(classes) - set(trained)):
        raise InputError(
            f"{where} has labels that the run was not trained on: "
            f"{', '.join(unknown[:LABELS_IN_A_MESSAGE])}; the run knows"
            f" {_first_names(trained)}: remove those rows, or evaluate on other data"
        )


def _unseen(unseen: Sequence[str], where: str, request: SplitRequest) -> InputError:
    """Return the error for labels that are not among the classes."""
    counted = f"{where}: label {unseen[0]!r} occurs in {count_of(unseen.count(unseen[0]), 'row')}"
    if request.label_names:
        return InputError(
            f"{counted} and is not among the agreed labels {_first_names(request.label_names)}; remove those rows, or"
            " add it to data.labels"
        )
    return InputError(f"{counted} but never in training; add training rows with it, or remove those rows")


def _first_names(names: Sequence[str]) -> str:
    """Return the first names, for a message."""
    return ", ".join(map(str, names[:LABELS_IN_A_MESSAGE])) + (", …" if len(names) > LABELS_IN_A_MESSAGE else "")


def number_strata(tables: Mapping[str, Table], columns: Sequence[str]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Number the strata by which a partition and a metric divide the examples of a task without classes.

    Args:
        columns: the first of them that every table has holds the strata.

    Returns:
        the strata, int64 [N], by split, and their names, those of all splits, sorted.

    Raises:
        InputError: a row has no stratum, or it is neither a text nor a whole number.
    """
    shared = [column for column in columns if all(column in table.columns for table in tables.values())]
    if not shared:
        return {split: np.zeros(table.num_rows, np.int64) for split, table in tables.items()}, ALL
    values = {split: labels_of(table, shared[0]) for split, table in tables.items()}
    names = tuple(sorted({value for own in values.values() for value in own}))
    numbers = {name: number for number, name in enumerate(names)}
    return {split: np.array([numbers[v] for v in own], dtype=np.int64) for split, own in values.items()}, names


def list_names(
    tables: Mapping[str, Table], lists: Mapping[str, Sequence[Sequence[str]]], request: SplitRequest = TRAIN_AND_TEST
) -> tuple[str, ...]:
    """Return the names that occur in the lists of the first requested split, sorted; or those that the request agrees
    on.

    Args:
        lists: by split, a list of names for each row.

    Raises:
        InputError: there are fewer than two, or another split has a name that is not among them.
    """
    first = request.splits[0]
    known = request.label_names or tuple(sorted({name for own in lists[first] for name in own}))
    if len(known) < 2:
        raise InputError(
            f"{tables[first].where}: only {', '.join(known) or 'empty lists'} occurs, and a task needs at least two "
            "names; add rows with others, or name another column"
        )
    for split, own in lists.items():
        if unknown := sorted({name for names in own for name in names} - set(known)):
            raise InputError(
                f"{tables[split].where}: {unknown[0]!r} occurs here but never in training; add training rows with it, "
                "or remove it (data.labels can name all that may occur)"
            )
    return known
