"""Guesses which column says what a model is to answer: the labels, or the numbers that stand in their place."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fftmoe.data.columns import plain_columns
from fftmoe.data.list_columns import LIST_LABELS, holds_lists
from fftmoe.data.number_columns import holds_fractions, holds_measurements, holds_numbers
from fftmoe.data.table import Table
from fftmoe.data.usual_names import LABEL_NAMES, SELDOM_LABELS, TEXT_NAMES, ends_like, first_of, single_columns
from fftmoe.errors import InputError
from fftmoe.shown import count_of

MAX_LABELS = 200


def guess_label(table: Table, free: Sequence[str]) -> str:
    """Return the column with a common name for labels, else the one with the fewest values, but at least two.

    A column with a usual name for clients, numbers of rows or splits is taken only if there is no other.

    Raises:
        InputError: no column looks like labels.
    """
    lists = [column for column in free if holds_lists(table, column)]
    if named := first_of(lists, LIST_LABELS):
        return named
    if named := first_of(single_columns(table, free), LABEL_NAMES):
        return named
    counts = _distinct(table, free)
    possible = [column for column, number in counts.items() if 2 <= number <= _most_labels(table)]
    if not possible:
        shown = (
            ", ".join(f"{column} ({count_of(number, 'value')})" for column, number in counts.items()) or "its columns"
        )
        raise InputError(
            f"{table.where}: no column looks like labels among {shown}; name it with data.label (--label); for a "
            "language model name its texts with data.text and set backbone.task=causal-lm; numbers to predict go into "
            "data.targets. The columns of a CSV file "
            "are separated by commas, semicolons, tabs or vertical bars"
        )
    return min(possible, key=lambda name: (_is_seldom(name), not ends_like(name, LABEL_NAMES), counts[name]))


def find_target(table: Table, free: Sequence[str]) -> str | None:
    """Return the column of numbers that stands where labels would; None if there is none, or labels stand beside it.

    Those are the numbers with fractions. Whole numbers are taken only if nothing looks like labels, if more differ than
    half of the rows, and if some do not: others number the rows.
    """
    fractions = [column for column in free if holds_fractions(table, column)]
    others = [column for column in free if column not in fractions]
    if fractions and any(_goes_before_numbers(table, column) for column in others):
        return None
    usual = [column for column in fractions if ends_like(column, LABEL_NAMES)]
    if usual or len(fractions) == 1:
        return (usual or fractions)[0]
    try:
        column = guess_label(table, without_only_text(table, free))
        return column if column in fractions else None
    except InputError:
        whole = [column for column in others if are_measured(table, column)]
        return whole[0] if len(whole) == 1 and not fractions else None


def _goes_before_numbers(table: Table, column: str) -> bool:
    """Return whether a column is called as labels are, or has two values, as a yes and a no."""
    number = _distinct(table, [column]).get(column, 0)
    usual = first_of(single_columns(table, [column]), LABEL_NAMES) is not None
    usual = usual or (ends_like(column, LABEL_NAMES) and 2 <= number <= _most_labels(table))
    return usual or (number == 2 and not _is_seldom(column))


def are_measured(table: Table, column: str) -> bool:
    """Return whether a column holds numbers that are measured, and that neither name anything nor number the rows."""
    repeated = _distinct(table, [column]).get(column, 0) < table.num_rows
    return repeated and not _is_seldom(column) and holds_measurements(table, column)


def _is_seldom(column: str) -> bool:
    return ends_like(column, SELDOM_LABELS)


def _most_labels(table: Table) -> int:
    return min(MAX_LABELS, table.num_rows // 2)


def _distinct(table: Table, free: Sequence[str]) -> Mapping[str, int]:
    """Return how many values of these columns differ, for those that hold names or texts."""
    return {column: len(set(values)) for column, values in _plain(table, free).items()}


def _plain(table: Table, free: Sequence[str]) -> Mapping[str, list[str]]:
    return plain_columns(replace(table, columns={column: table.columns[column] for column in free}))


def text_columns(table: Table, free: Sequence[str]) -> Mapping[str, list[str]]:
    """Return those of the columns that can be texts: names or texts, and no numbers."""
    return {column: texts for column, texts in _plain(table, free).items() if not holds_numbers(table, column)}


def without_only_text(table: Table, free: Sequence[str]) -> list[str]:
    """Return the columns without the only one that can be the text; all of them if its name says that it is labels, or
    another that it is the text. Clients, splits and numbers of rows are no texts.
    """
    texts = [column for column in text_columns(table, free) if not _is_seldom(column)]
    if first_of(single_columns(table, free), TEXT_NAMES) or len(texts) != 1 or first_of(texts, LABEL_NAMES):
        return list(free)
    return [column for column in free if column not in texts]
