"""Gives the numbers of figures and tables as values, and as the CSV file beside a page.

Names of labels and clients come from data. A spreadsheet runs a cell that begins like a formula, so such a text has an
apostrophe before it (OWASP, "CSV Injection"); characters that act on a terminal are written out.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from fftmoe.shown import shown

HEADER = ("figure", "series", "across", "at", "value", "low", "high")
# What a formula begins with, in a cell or in a part of it that a program with other separators takes for a cell. The
# last four characters are full width.
FORMULA = re.compile("(^|[;,|\\t\\r\\n])(\\s*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])")


@dataclass(frozen=True)
class PlottedNumber:
    """Holds one number of a figure or a table.

    Attributes:
        series: the line, the row or the kind that it belongs to. at: where it is along the figure.
        low, high: the ends of its interval; None where it has none.
    """

    series: str
    at: str | float
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Numbers:
    """Holds all numbers of a figure or a table; `across` is what its places are."""

    title: str
    across: str
    each: Sequence[PlottedNumber]


def numbers_in(shown_values: Any) -> Iterable[Numbers]:
    """Return all numbers in the values of a page, in the order in which the page shows them."""
    if isinstance(shown_values, Numbers):
        yield shown_values
    elif isinstance(shown_values, dict):
        for value in shown_values.values():
            yield from numbers_in(value)
    elif isinstance(shown_values, list | tuple):
        for value in shown_values:
            yield from numbers_in(value)
    elif is_dataclass(shown_values):
        for field in fields(shown_values):
            yield from numbers_in(getattr(shown_values, field.name))


def csv_of(all_numbers: Iterable[Numbers]) -> str:
    """Return the numbers as CSV with a header (RFC 4180): one line for each number, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEADER)
    for numbers in all_numbers:
        for n in numbers.each:
            places = (numbers.title, n.series, numbers.across, n.at, n.value, n.low, n.high)
            writer.writerow([_cell(value) for value in places])
    return text.getvalue()


def _cell(value: str | float | None) -> str:
    """Return a cell: a text that cannot be a formula, or a number; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, str):
        return FORMULA.sub(r"\1\2'", shown(value))
    return str(int(value)) if isinstance(value, int) or float(value).is_integer() else repr(float(value))
