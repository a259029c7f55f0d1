"""Finds what columns of lists hold: words with a tag for each, or the labels of a row."""

from collections.abc import Sequence
from typing import Any

from fftmoe.data.table import Table
from fftmoe.data.usual_names import LABEL_NAMES, TAG_NAMES, TEXT_NAMES, TOKEN_NAMES, first_of, single_columns

LOOKED_AT = 100  # values that decide the type of a column
LIST_LABELS = ("labels", *LABEL_NAMES)


def holds_lists(table: Table, column: str) -> bool:
    """Return whether a column holds lists of names."""
    values = table.columns[column][:LOOKED_AT]
    return bool(len(values)) and all(
        isinstance(value, list) and not any(isinstance(item, list) for item in value) for value in values
    )


def words_and_tags(table: Table, free: Sequence[str]) -> tuple[str, str] | None:
    """Return the columns of words and of their tags: those of usual names, else two whose lists have equal lengths.

    One of the two has a usual name; or there is no text, and words differ more than tags do.
    """
    lists = [column for column in free if holds_lists(table, column)]
    words, tags = first_of(lists, TOKEN_NAMES), first_of(lists, TAG_NAMES)
    if words and tags:
        return words, tags
    usual = words or tags
    if usual is not None:
        others = [column for column in lists if column != usual and _have_equal_lengths(table, usual, column)]
        return None if len(others) != 1 else (words or others[0], tags or others[0])
    if len(lists) != 2 or first_of(single_columns(table, free), TEXT_NAMES) or not _have_equal_lengths(table, *lists):
        return None
    few, many = sorted(lists, key=lambda column: _distinct_items(table, column))
    return None if _distinct_items(table, few) == _distinct_items(table, many) else (many, few)


def several_labels(table: Table, free: Sequence[str]) -> str | None:
    """Return the column of lists that are the labels of rows: one of a usual name, else the only one with few labels;
    None where another column is called as labels are.
    """
    lists = [column for column in free if holds_lists(table, column) and first_of([column], TOKEN_NAMES) is None]
    if usual := first_of(lists, LIST_LABELS):
        return usual
    if first_of(single_columns(table, free), LABEL_NAMES):
        return None
    likely = [column for column in lists if 2 <= _distinct_items(table, column) <= table.num_rows // 2]
    return first_of(likely, TAG_NAMES) or (likely[0] if len(likely) == 1 else None)


def _have_equal_lengths(table: Table, first: str, second: str) -> bool:
    pairs = list(zip(table.columns[first][:LOOKED_AT], table.columns[second][:LOOKED_AT], strict=True))
    return all(len(own) == len(other) for own, other in pairs) and any(len(own) > 1 for own, _ in pairs)


def _distinct_items(table: Table, column: str) -> int:
    lists: Sequence[Any] = table.columns[column]
    return len({repr(item) for own in lists if isinstance(own, list) for item in own})
