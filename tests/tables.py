"""Writes one table of texts in every format that is read, and in the variants that programs write."""

import codecs
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow
from pyarrow import parquet

Texts = Mapping[str, Sequence[str]]

SEPARATORS = (",", ";", "\t", "|")
LINE_ENDS = ("\n", "\r\n", "\r")
MARKS = {
    "utf-8": b"",
    "utf-8-sig": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
}


def write_csv(path: Path, columns: Texts, separator: str = ",", line_end: str = "\n", encoding: str = "utf-8") -> None:
    file = io.StringIO(newline="")
    # By itself the writer leaves a line end without quotes where it is no part of its own one.
    returns = any("\r" in cell or "\n" in cell for values in columns.values() for cell in values)
    quoting = csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=separator, lineterminator=line_end, quoting=quoting)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    path.write_bytes(encoded(file.getvalue(), encoding))


def write_jsonl(path: Path, columns: Texts, escaped: bool = False, encoding: str = "utf-8") -> None:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_bytes(encoded("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows), encoding))


def write_json(path: Path, columns: Texts, escaped: bool = False, encoding: str = "utf-8") -> None:
    """One list of objects, as programs write it: on several lines."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_bytes(encoded("\n" + json.dumps(rows, ensure_ascii=escaped, indent=1), encoding))


def write_parquet(path: Path, columns: Texts) -> None:
    parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path)


def encoded(text: str, encoding: str) -> bytes:
    """The text with its byte order mark, as editors write it."""
    return MARKS[encoding] + text.encode("utf-8" if encoding == "utf-8-sig" else encoding)
