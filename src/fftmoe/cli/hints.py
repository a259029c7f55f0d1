"""Tells what the data may hold besides what a new recipe reads from it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fftmoe.cli.init_lines import unread_columns
from fftmoe.shown import quoted

if TYPE_CHECKING:
    from fftmoe.config import Recipe
    from fftmoe.data import Table
    from fftmoe.data.sources import ReadAhead


def hint_lines(recipe: "Recipe", read_ahead: "ReadAhead") -> Iterator[str]:
    """Yield lines about the rows that were read of a source."""
    table = read_ahead.rows
    if table is None:
        return
    unread = unread_columns(recipe, tuple(table.columns))
    yield from _separator_line(recipe, table)
    yield from _numbers_line(recipe, table, unread)
    if not read_ahead.is_divided:
        yield from _split_line(table, unread)


def _separator_line(recipe: "Recipe", table: "Table") -> Iterator[str]:
    """Yield what would divide cells that look like several labels."""
    from fftmoe.data.list_cells import usual_separator

    label = recipe.data.label
    if recipe.backbone.task == "sequence-classification" and (sign := usual_separator(table.columns.get(label, ()))):
        yield (
            f"cells of column {label!r} hold {sign!r}, and each cell is one label; if it holds several: "
            f"--list-separator {quoted(sign)}"
        )


def _numbers_line(recipe: "Recipe", table: "Table", unread: list[str]) -> Iterator[str]:
    """Yield the columns of numbers that could be predicted in place of labels."""
    from fftmoe.data.label_columns import are_measured

    found = [column for column in unread if are_measured(table, column)][:1]
    if recipe.backbone.task == "sequence-classification":
        yield from (f"numbers that could be predicted: --label {quoted(column)}" for column in found)


def _split_line(table: "Table", unread: list[str]) -> Iterator[str]:
    """Yield the column that names training and test rows, where these are chosen anew."""
    from fftmoe.data.read import SPLIT_NAMES

    for column in unread:
        names = {value.strip().lower() if isinstance(value, str) else None for value in table.columns[column]}
        if len(names) > 1 and names.issubset(SPLIT_NAMES):
            yield (
                f"column {column!r} says which rows are for training and which for tests, and is not read: the rows "
                "were divided anew; to keep its division, write them into train.csv and test.csv (or other tables) in "
                "one folder, and name that folder"
            )
