"""Looks at names of columns: a file without a line of names gives its first row for them."""

import re
from collections.abc import Iterable

LONGEST_NAME = 60  # characters; what is longer is rather a text of the first row
SHOWN_NAMES = 8
_FRACTION = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?")


def value_among_names(names: Iterable[str]) -> str | None:
    """Return the first of these names of columns that looks like a value, shortened; None if none does.

    A number with a fraction does, and a long text. Whole numbers are names in many files.
    """
    found = next((name for name in names if len(name) > LONGEST_NAME or _FRACTION.fullmatch(name.strip())), None)
    return None if found is None else _shortened(found)


def listed_names(names: Iterable[str]) -> str:
    """Return the names of columns for a message: the first ones, and each shortened."""
    listed = [_shortened(name) for name in names]
    more = f" and {len(listed) - SHOWN_NAMES} more" if len(listed) > SHOWN_NAMES else ""
    return ", ".join(listed[:SHOWN_NAMES]) + more


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
