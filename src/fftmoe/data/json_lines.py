"""Reads JSON: objects, one on every line or all in one list, whose values keep their types."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fftmoe.data.text_files import lines_of
from fftmoe.strict import STRICT_DECODER, json_text


class JsonColumns(Mapping[str, list[Any]]):
    """Holds the columns of rows that are objects; each is made when it is asked for, with None where a row lacks it."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows
        self._names = dict.fromkeys(name for row in rows for name in row)

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._names:
            raise KeyError(name)
        return [row.get(name) for row in self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def parse_json_lines(text: str) -> tuple[JsonColumns, int]:
    """Return the columns of a file of JSON lines, and the number of its rows; lines with white space only are no rows.

    Raises:
        ValueError: it is not such a file. The message is the end of a sentence that names the file.
    """
    rows, escapes = [], "\\u" in text
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip(" \t"):
            continue
        try:
            rows.append(_row(line, escapes))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}; correct the line") from error
        except ValueError as error:
            raise ValueError(f"line {number}: {error}; correct the line") from error
    return JsonColumns(rows), len(rows)


def parse_json(text: str) -> tuple[JsonColumns, int]:
    """Return the columns of a file that is one list of objects, or JSON lines, and the number of its rows.

    Raises:
        ValueError: it is neither. The message is the end of a sentence that names the file.
    """
    if not text.lstrip(" \t\r\n").startswith("["):
        return parse_json_lines(text)
    try:
        rows = _value(text, "\\u" in text)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}; correct the line") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"item {number} of its list is not an object, {{…}}; correct the item")
    return JsonColumns(rows), len(rows)


def _row(line: str, escapes: bool) -> dict[str, Any]:
    """Return the object on a line; `escapes` says that it may have characters that are written as numbers."""
    row = _value(line, escapes)
    if not isinstance(row, dict):
        raise ValueError("it is not an object, {…}")
    return row


def _value(text: str, escapes: bool) -> Any:
    """Return a value in strict JSON, all of whose characters can be written."""
    try:
        value = STRICT_DECODER.decode(text)
        if escapes:
            json_text(value, ascii_only=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has half of a surrogate pair, which is no character") from error
    return value
