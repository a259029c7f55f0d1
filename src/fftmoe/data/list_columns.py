"""Finds columns of lists."""

from fftmoe.data.table import Table

LOOKED_AT = 100  # values that decide the type of a column


def holds_lists(table: Table, column: str) -> bool:
    """Return whether a column holds lists of names."""
    values = table.columns[column][:LOOKED_AT]
    return bool(len(values)) and all(
        isinstance(value, list) and not any(isinstance(item, list) for item in value) for value in values
    )
