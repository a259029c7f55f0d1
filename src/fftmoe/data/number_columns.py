"""Finds columns of numbers: those that are no texts, and those that are measured and name nothing."""

import math
import re
from decimal import Decimal
from typing import Any

from fftmoe.data.table import Table

FEWEST_NUMBERS = 11  # distinct ones; fewer may be grades, such as stars in halves
MOST_NUMBERS = 0.9  # the part of the values that must be numbers; whoever reads the others names their rows
_DECIMAL = re.compile(r"[+-]?(\d+\.\d+|\.?\d+)([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,3}([. '\u2019\u00a0\u202f]\d{3})+|\d+),\d+", re.ASCII)
_THOUSANDS = re.compile(
    r"[+-]?(\d{1,3}(,\d{3})+\.\d+|\d{1,3}(,\d{3}){2,}|\d{1,3}([ '\u2019\u00a0\u202f]\d{3})+(\.\d+)?)"
)
_BETWEEN_THOUSANDS = str.maketrans("", "", " '\u2019\u00a0\u202f")


def holds_numbers(table: Table, column: str) -> bool:
    """Return whether nearly all values of a column are finite numbers, with a decimal point or a decimal comma."""
    return _are_most(len(_numbers(table, column)), table, column)


def holds_fractions(table: Table, column: str) -> bool:
    """Return whether nearly all values of a column are finite numbers, many and not all whole."""
    numbers = _numbers(table, column)
    distinct = set(numbers)
    whole = all(number.is_integer() for number in distinct)
    return not whole and len(distinct) >= FEWEST_NUMBERS and _are_most(len(numbers), table, column)


def holds_measurements(table: Table, column: str) -> bool:
    """Return whether a column holds fractions, or whole numbers that cannot be classes: many, of which more differ
    than half of the rows.
    """
    if column in table.class_names:
        return False
    numbers = _numbers(table, column)
    many = len(set(numbers)) >= max(FEWEST_NUMBERS, table.num_rows // 2 + 1)
    return holds_fractions(table, column) or (many and _are_most(len(numbers), table, column))


def has_decimal_comma(text: str) -> bool:
    """Return whether a text is a number that is written with a decimal comma."""
    return _DECIMAL_COMMA.fullmatch(text.strip()) is not None


def with_decimal_point(text: str) -> str | None:
    """Return a number that is written with a decimal comma, or with signs between thousands, as it should be written;
    None for any other text.
    """
    number = text.strip()
    if has_decimal_comma(number):
        return number.translate(_BETWEEN_THOUSANDS).replace(".", "").replace(",", ".")
    return number.translate(_BETWEEN_THOUSANDS).replace(",", "") if _THOUSANDS.fullmatch(number) else None


def _are_most(number: int, table: Table, column: str) -> bool:
    return number >= max(1, MOST_NUMBERS * len(table.columns[column]))


def _numbers(table: Table, column: str) -> list[float]:
    """Return the finite numbers among the values of a column."""
    return [number for number in map(_number, table.columns[column]) if number is not None]


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        value = with_decimal_point(value) or value
    if isinstance(value, str) and not _DECIMAL.fullmatch(value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
