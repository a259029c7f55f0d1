"""Divides cells of text into lists, where a recipe says by which characters: CSV has no lists of its own."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fftmoe.data.list_columns import LIST_LABELS, words_and_tags
from fftmoe.data.table import Table
from fftmoe.data.usual_names import LABEL, TAG_NAMES, TAGS, TEXT, TOKEN_NAMES, TOKENS, first_of
from fftmoe.errors import InputError

LIST_SIGNS = "|;,"
"""The signs that usually divide several labels in a cell."""


@dataclass(frozen=True)
class ListCells:
    """Names the columns whose cells are lists, and the characters between the items of one."""

    columns: Collection[str]
    separator: str

    def read(self, table: Table) -> Table:
        """Return the table with lists in these columns, as far as it has them; values that are no texts stay."""
        found = {
            column: [_divided(value, self.separator) for value in table.columns[column]]
            for column in self.columns
            if column in table.columns
        }
        return replace(table, columns={**table.columns, **found})


def _divided(value: Any, separator: str) -> Any:
    """Return the items of a text without surrounding white space, and without those that are empty."""
    return [item for part in value.split(separator) if (item := part.strip())] if isinstance(value, str) else value


def divided_columns(table: Table, named: Mapping[str, str], separator: str, by: str | None = None) -> Mapping[str, str]:
    """Return the columns that a separator divides into lists, by the keys of the recipe that name them.

    Those are tokens and tags, if the recipe names the tags or there are as many tokens as tags. Else they are the
    labels: those that the recipe names, a column of a usual name, or the one with the separator between the fewest
    names.

    Args:
        by: the column that names the clients, which holds no lists.

    Raises:
        InputError: no column holds the separator between names.
    """
    free = [column for column in table.columns if column not in (by, named.get(TEXT))]
    if TAGS in named:
        words = named.get(TOKENS) or first_of(free, TOKEN_NAMES)
        return {TAGS: named[TAGS], **({TOKENS: words} if words else {})}
    if LABEL in named:
        return {LABEL: named[LABEL]}
    if pair := words_and_tags(ListCells(free, separator).read(table), free):
        return {TOKENS: pair[0], TAGS: pair[1]}
    items = _items(table, free, separator)
    likely = [column for column, number in items.items() if 2 <= number <= table.num_rows // 2]
    usual = first_of(list(items) or free, (*LIST_LABELS, *TAG_NAMES))
    label = usual or min(likely, key=items.__getitem__, default=None)
    if label is None:
        raise InputError(
            f"{table.where}: no column holds data.list_separator={separator!r} between names that repeat; name the "
            "column of labels with data.label (--label)"
        )
    return {LABEL: label}


def _items(table: Table, free: Sequence[str], separator: str) -> Mapping[str, int]:
    """Return the number of different items in each column that holds the separator."""
    found = {}
    for column in free:
        cells = [value for value in table.columns[column] if isinstance(value, str)]
        if any(separator in cell for cell in cells):
            found[column] = len({item for cell in cells for item in _divided(cell, separator)})
    return found


def usual_separator(values: Sequence[Any]) -> str | None:
    """Return the separator that these cells of text hold as lists of names do: most of them hold it, or those that do
    are made of names that other cells have alone. None if there is none.
    """
    cells = [value for value in values if isinstance(value, str)]
    alone = {cell.strip() for cell in cells}

    def divides(sign: str) -> bool:
        lists = [cell for cell in cells if sign in cell]
        known = sum(all(item in alone for item in _divided(cell, sign)) for cell in lists)
        return 2 * len(lists) > len(values) or (known > 1 and 2 * known > len(lists))

    return next(filter(divides, LIST_SIGNS), None)
