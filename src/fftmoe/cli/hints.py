"""Tells what the data may hold besides what a new recipe reads from it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fftmoe.cli.init_lines import unread_columns
from fftmoe.shown import quoted

if TYPE_CHECKING:
    from fftmoe.config import Recipe
    from fftmoe.data import Table


def hint_lines(recipe: "Recipe", table: "Table | None") -> Iterator[str]:
    """Yield lines about the rows of a source.

    Args:
        table: the training rows, or all rows where nobody has divided them; None if they were not read.
    """
    if table is None:
        return
    unread = unread_columns(recipe, tuple(table.columns))
    yield from _separator_line(recipe, table)
    yield from _numbers_line(recipe, table, unread)


def _separator_line(recipe: "Recipe", table: "Table") -> Iterator[str]:
    """Yield what would divide cells that look like several labels."""
    from fftmoe.data.list_cells import usual_separator

    label = recipe.data.label
    if recipe.backbone.task == "sequence-classification" and (sign := usual_separator(table.columns.get(label, ()))):
        yield (
            f"most cells of column {label!r} hold {sign!r}, and each cell is one label; if it holds several: "
            f"--list-separator {quoted(sign)}"
        )


def _numbers_line(recipe: "Recipe", table: "Table", unread: list[str]) -> Iterator[str]:
    """Yield the columns of numbers that could be predicted in place of labels."""
    from fftmoe.data.label_columns import are_measured

    found = [column for column in unread if are_measured(table, column)][:1]
    if recipe.backbone.task == "sequence-classification":
        yield from (f"numbers that could be predicted: --label {quoted(column)}" for column in found)
