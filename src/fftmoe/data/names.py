"""Reads names in data: labels, clients and strata are texts, the same from every kind of file."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any

from fftmoe.shown import count_of

_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,299}")


def name_of(value: Any) -> str | None:
    """Return the name that a value of a file stands for; None if there is no value.

    A text is its own name, with every blank and zero that it has. Typed values of parquet and JSON have one spelling:
    whole numbers their digits, truth values `true` and `false` as in JSON, and days `2020-12-31`.

    Raises:
        TypeError: the value is of another type, such as a fraction or a time, which has many spellings.
    """
    if value is None or type(value) is str:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, date) and not isinstance(value, datetime)):
        return str(value)
    raise TypeError(f"{type(value).__name__} values such as {value!r:.50}")


def is_blank(text: str | None) -> bool:
    """Return whether there is no text, or only white space."""
    return text is None or not text.strip()


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return the distinct names: by value if all are whole numbers without leading zeros, else by their characters.

    The order depends on the names only, so that a table has the same classes and clients in every format.
    """
    distinct = set(names)
    return sorted(distinct, key=int) if all(map(_WHOLE_NUMBER.fullmatch, distinct)) else sorted(distinct)


def near_equal(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of distinct names that differ only in blanks, case, invisible characters or Unicode form,
    sorted.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        groups[_folded(name)].append(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def near_equal_notes(what: str, names: Iterable[str], most: int = 3) -> tuple[str, ...]:
    """Return a sentence about near-equal names, which are never merged; none if there are no such names.

    Args:
        what: what the names are, in the plural. most: groups that are listed.
    """
    groups = near_equal(names)
    if not groups:
        return ()
    shown = "; ".join(" and ".join(map(repr, group[:most])) for group in groups[:most])
    more = f"; and {count_of(len(groups) - most, 'more such group')}" if len(groups) > most else ""
    return (
        f"{what} that differ only in blanks, case or the form of characters count as different: {shown}{more}; "
        "if they mean the same, write them the same way",
    )


def distinct_names(names: Sequence[str], what: str) -> None:
    """Check that no name occurs twice; several names may be empty, and then nobody can mean one of them.

    Raises:
        ValueError: one does.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen and name:
            raise ValueError(f"it has two {what} named {name!r}; give each its own name")
        seen.add(name)


def _folded(name: str) -> str:
    """Return the name without differences that a person hardly sees."""
    if not name.isascii():
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        name = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return " ".join(name.casefold().split())
