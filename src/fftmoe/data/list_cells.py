"""Divides cells of text into lists, where a recipe says by which characters: CSV has no lists of its own."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fftmoe.data.table import Table
from fftmoe.data.usual_names import LABEL, LABEL_NAMES, TAG_NAMES, TAGS, TOKEN_NAMES, TOKENS, first_of


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


def with_likely_lists(table: Table, named: Mapping[str, str], separator: str) -> Table:
    """Return the table with lists in the columns that the recipe names for them, else in those of usual names.

    Tokens and tags go before labels, as where the columns hold lists themselves.
    """
    names = list(table.columns)
    tags = named.get(TAGS) or (None if LABEL in named else first_of(names, TAG_NAMES))
    if tags is not None:
        columns = [tags, named.get(TOKENS) or first_of(names, TOKEN_NAMES)]
    else:
        columns = [named.get(LABEL) or first_of(names, ("labels", *LABEL_NAMES))]
    return ListCells([name for name in columns if name is not None], separator).read(table)
