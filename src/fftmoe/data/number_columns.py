"""Finds columns of numbers with fractions, which are measured and name nothing."""

import math
import re
from typing import Any

from fftmoe.data.table import Table

FEWEST_NUMBERS = 11  # distinct ones; fewer may be grades, such as stars in halves
MOST_NUMBERS = 0.9  # the part of the values that must be numbers; whoever reads the others names their rows
_DECIMAL = re.compile(r"[+-]?(\d+\.\d+|\.?\d+)([eE][+-]?\d+)?", re.ASCII)


def holds_fractions(table: Table, column: str) -> bool:
    """Return whether nearly all values of a column are finite numbers, many and not all whole."""
    values = table.columns[column]
    numbers = [number for number in map(_number, values) if number is not None]
    distinct = set(numbers)
    whole = all(number.is_integer() for number in distinct)
    return not whole and len(distinct) >= FEWEST_NUMBERS and len(numbers) >= MOST_NUMBERS * len(values)


def _number(value: Any) -> float | None:
    if isinstance(value, str) and not _DECIMAL.fullmatch(value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
