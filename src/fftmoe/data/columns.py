"""Reads the values of a table's columns and checks them row by row: texts, names, numbers, lists of names."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from fftmoe.data.names import is_blank, name_of
from fftmoe.data.number_columns import has_decimal_comma, with_decimal_point
from fftmoe.data.table import Table
from fftmoe.errors import InputError, did_you_mean
from fftmoe.shown import count_of

# What a cell of text must look like to be a number; Python's float() also takes 1_000, nan and digits of any script.
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


def check_column(table: Table, column: str, keys: Sequence[str]) -> None:
    """Check that the table has rows and this column.

    Args:
        keys: the recipe's keys that name columns, for the message.

    Raises:
        InputError: it does not.
    """
    if table.num_rows == 0:
        raise InputError(f"{table.where} has no rows; every split needs at least one")
    if column not in table.columns:
        near = did_you_mean(column, table.columns)
        near = near if "did you mean" in near else ""
        raise InputError(
            f"{table.where} has no column {column!r}{near}; it has {', '.join(table.columns)}: name one of them with "
            + " or ".join(part for part in (", ".join(keys[:-1]), keys[-1]) if part)
        )


def texts_of(table: Table, key: str, column: str) -> tuple[str, ...]:
    """Return the N texts of a column.

    Args:
        key: the recipe's key that names the column, for messages.

    Raises:
        InputError: a value is empty or not a text.
    """
    texts = tuple(table.columns[column])
    for place, value in enumerate(texts):
        if _is_empty(value):
            raise InputError(
                f"{table.where}: column {column!r} is empty in row {table.origin.row(place)}{_others(texts)}; remove "
                "the row or fill it in"
            )
        if not isinstance(value, str):
            raise InputError(
                f"{table.where}: column {column!r} holds {type(value).__name__} values such as {value!r:.50} (row"
                f" {table.origin.row(place)}); texts must be strings: name another column with {key}"
            )
    return texts


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _others(values: Sequence[Any]) -> str:
    """Return how many values are empty after the first one, so that a person mends all of them at once; none: ""."""
    more = sum(map(_is_empty, values)) - 1
    return f" and {more} more" if more > 0 else ""


def labels_of(table: Table, column: str) -> list[str]:
    """Return the N labels of a column as texts, with class numbers replaced by their names.

    Raises:
        InputError: a label is missing, or has a type that names nothing; a class number has no name.
    """
    return names_of(table, column, "label", "data.label")


def names_of(table: Table, column: str, what: str, key: str) -> list[str]:
    """Return the N names in a column: texts as they are, and the one spelling of typed values (`name_of`).

    Args:
        what: what is named, for messages, such as "label". key: the recipe's key that names the column.

    Raises:
        InputError: as `labels_of`.
    """
    classes = table.class_names.get(column)
    names: list[str] = []
    for place, value in enumerate(table.columns[column]):
        try:
            name = name_of(value) if classes is None else _class_name(classes, value)
        except (TypeError, LookupError) as error:
            raise InputError(
                f"{table.where}: column {column!r} holds {error.args[0]} (row {table.origin.row(place)}); {what}s "
                "must be strings or whole "
                f"numbers: correct the column, or name another one with {key}"
            ) from error
        if name is None or is_blank(name):
            raise InputError(
                f"{table.where}: column {column!r} has no {what} in row {table.origin.row(place)} (value "
                f"{value!r}){_others(table.columns[column])}; remove the row or fill it in"
            )
        names.append(name)
    return names


def owners_of(table: Table, column: str) -> list[str | None]:
    """Return the N names in a column as `names_of` reads them; None where a row names nobody."""
    classes = table.class_names.get(column)
    names: list[str | None] = []
    for value in table.columns[column]:
        try:
            name = name_of(value) if classes is None else _class_name(classes, value)
        except (TypeError, LookupError):
            name = None
        names.append(None if is_blank(name) else name)
    return names


def plain_columns(table: Table) -> dict[str, list[str]]:
    """Return the columns most of whose values are names or texts, as texts; an empty one for a value that is neither.

    One value that cannot be read does not make another column the one that was meant: whoever reads the column names
    its row.
    """
    found: dict[str, list[str]] = {}
    for column, values in table.columns.items():
        names = [_plain(table.class_names.get(column), value) for value in values]
        if 2 * sum(name is None for name in names) <= len(names):
            found[column] = [name or "" for name in names]
    return found


def _plain(classes: Sequence[str] | None, value: Any) -> str | None:
    """Return a value as a text, empty if there is none; None if it is no name: a number, an image, a list."""
    try:
        return (name_of(value) if classes is None else _class_name(classes, value)) or ""
    except (TypeError, LookupError):
        return None


def spelled(table: Table, column: str) -> list[Any]:
    """Return the values of a column as they are read: names in their one spelling, in lists too, "" where there is
    none.

    Values that are no names stay as they are.
    """
    classes = table.class_names.get(column)
    return [_spelled(classes, value) for value in table.columns[column]]


def _spelled(classes: Sequence[str] | None, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_spelled(classes, item) for item in value]
    try:
        return (name_of(value) if classes is None else _class_name(classes, value)) or ""
    except (TypeError, LookupError):
        return value


def _class_name(classes: Sequence[str], value: Any) -> str | None:
    """Return the name of a class by its number; -1 stands for no class, and a text is its own name."""
    if isinstance(value, bool) or not isinstance(value, int):
        return name_of(value)
    if value == -1:
        return None
    if not 0 <= value < len(classes):
        raise LookupError(f"the class number {value}, and the file names classes 0 to {len(classes) - 1} only")
    return classes[value]


def numbers_of(table: Table, columns: Sequence[str]) -> Tensor:
    """Return the finite numbers of T columns, float64 [N, T]; a text is read as a number if it is written as one.

    Raises:
        InputError: a value is not a finite number, or too large for the float32 numbers of a saved head.
    """
    found = [
        [_number(table, column, place, value) for place, value in enumerate(table.columns[column])]
        for column in columns
    ]
    return torch.tensor(found, dtype=torch.float64).T.contiguous()


def _number(table: Table, column: str, place: int, value: Any) -> float:
    written = isinstance(value, str) and _NUMBER.fullmatch(value)
    typed = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    try:
        number = float(value) if written or typed else float("nan")
    except OverflowError:  # a whole number of more than 308 digits
        number = float("inf")
    if not abs(number) <= _LARGEST:
        if isinstance(value, str) and (right := with_decimal_point(value)) is not None:
            raise _decimal_comma(table, column, place, value, right)
        raise InputError(
            f"{table.where}: column {column!r} holds {value!r:.50} in row {table.origin.row(place)}, which is not a "
            "finite number up to 1e30; correct or remove the row, or name another column with data.targets"
        )
    return number


def _decimal_comma(table: Table, column: str, place: int, value: str, right: str) -> InputError:
    """Return the error for a column with numbers that have a decimal comma, or signs between thousands."""
    texts = (text for text in table.columns[column] if isinstance(text, str))
    more = sum(with_decimal_point(text) is not None for text in texts) - 1
    others = f", and {count_of(more, 'more value')} like it" if more else ""
    wrong = "with a decimal comma; write a decimal point"
    if not has_decimal_comma(value):
        wrong = "with signs between thousands; write the number without them"
    return InputError(
        f"{table.where}: column {column!r} holds {value!r:.50} in row {table.origin.row(place)}{others}, {wrong}, "
        f"{right:.50}, or name another column with data.targets"
    )


_LARGEST = 1e30  # a saved head has float32 numbers of the size of targets times weights


def lists_of(table: Table, key: str, column: str) -> list[list[str]]:
    """Return the lists of names of a column, with class numbers replaced by their names.

    Args:
        key: the recipe's key that names the column, for messages.

    Raises:
        InputError: a row does not hold a list of names; a class number has no name.
    """
    classes = table.class_names.get(column)
    lists: list[list[str]] = []
    for place, value in enumerate(table.columns[column]):
        try:
            own = [name_of(item) if classes is None else _class_name(classes, item) for item in _list(value)]
        except (TypeError, LookupError) as error:
            raise InputError(
                f"{table.where}: column {column!r} holds {error.args[0]} in row {table.origin.row(place)}, which is "
                f"not a list of names; lists are read from .parquet, .jsonl and .json files, and from cells of text if "
                f"data.list_separator says what divides them: correct the row, or name another column with {key}"
            ) from error
        lists.append([_given(table, column, place, name) for name in own])
    return lists


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r:.50}")
    return list(value)


def _given(table: Table, column: str, place: int, name: str | None) -> str:
    if name is None:
        raise InputError(
            f"{table.where}: a list in column {column!r} has no value in row {table.origin.row(place)}; correct the row"
        )
    return name
