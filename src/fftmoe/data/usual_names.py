"""Says by which keys a recipe names columns, and which names they usually have, in small letters."""

import re
from collections.abc import Collection, Sequence

from fftmoe.data.table import Table

TEXT, IMAGE, LABEL, PROMPT, COMPLETION, CHOSEN, REJECTED, TOKENS, TAGS, NUMBERS = (
    f"data.{name}"
    for name in ("text", "image", "label", "prompt", "completion", "chosen", "rejected", "tokens", "tags", "targets")
)

TEXT_NAMES = ("text", "sentence", "content", "note", "message", "question", "review", "utterance")
LABEL_NAMES = (
    *("label", "labels", "class", "category", "intent", "target"),
    *("sentiment", "emotion", "topic", "diagnosis", "polarity"),
)
CLIENT_NAMES = (
    *("client", "site", "hospital", "clinic", "ward", "branch", "department", "team", "company", "user", "user_id"),
    *("speaker", "author", "annotator", "domain", "source", "country", "region", "city", "language", "lang"),
)
"""Names of columns that say whose a row is or where it is from, and seldom what it means."""
SELDOM_LABELS = (*CLIENT_NAMES, "id", "split", "fold")
_LAST_WORD = re.compile(r"[^\W_]+(?=[\W_]*$)")
ANSWER_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
QUESTION_PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("query", "answer"),
    ("query", "response"),
    ("input", "output"),
)
"""Pairs whose answers may be written or chosen among a few, which their number tells."""
PROMPT_NAMES = ("prompt", "question", "instruction", "input", "query")
PREFERRED = ("chosen", "rejected")
TAG_NAMES = ("tags", "ner_tags")
TOKEN_NAMES = ("tokens", "words")


def first_of(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of the columns whose name, in any case, is a usual one, in the order of the names."""
    return next((column for name in names for column in columns if column.lower() == name), None)


def ends_like(column: str, names: Collection[str]) -> bool:
    """Return whether a column is called one of the names, in any case, or has one as its last word: `shop_id`."""
    last = _LAST_WORD.search(column)
    return not {column.lower(), last[0].lower() if last else ""}.isdisjoint(names)


def pair_of(columns: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return the columns of the first pair of which both are there."""
    found = ((first_of(columns, [asked]), first_of(columns, [answer])) for asked, answer in pairs)
    return next(((asked, answer) for asked, answer in found if asked and answer), None)


def single_columns(table: Table, columns: Sequence[str]) -> list[str]:
    """Return those of the columns that hold single values, also values that cannot be read:
    their names say what they are.
    """
    several = (list, tuple, dict, bytes, type(None))
    return [column for column in columns if any(not isinstance(value, several) for value in table.columns[column])]
