"""Reads CoNLL files: a token and its tag on each line, and an empty line between sentences."""

import re
from collections.abc import Mapping, Sequence

from fftmoe.data.text_files import lines_of
from fftmoe.shown import count_of

CONLL_SUFFIXES = ("conll", "bio", "iob")
_DOCUMENT = "-DOCSTART-"  # the token of a line that begins a document
_COMMENT = re.compile(r"#\s?(\S+ = |id\s)")  # whatever the number of its cells


def parse_conll(text: str) -> tuple[Mapping[str, Sequence[list[str]]], int]:
    """Return the columns of a CoNLL file as lists, a sentence each, and the number of the sentences.

    The first cell of a line is the token (`tokens`) and the last one its tag (`tags`); those between are `column 2`,
    `column 3` and so on. A file with a tab in a line of tokens has its cells between tabs, any other between white
    space. Lines that begin a document are left out, and so are comments: what begins with `#` and has another number of
    cells, `# name = …` and `# id …`.

    Raises:
        ValueError: it is not such a file. The message is the end of a sentence that names the file.
    """
    lines = lines_of(text)
    by_tabs = any("\t" in line.strip() for line in lines if not line.startswith("#"))
    cells = [_cells(line, by_tabs) for line in lines]
    sure = (row for row in cells if row and not row[0].startswith(("#", _DOCUMENT)))
    width = len(next(sure, ()))
    if not width:
        raise ValueError("it has no token; it needs lines with a token and its tag")
    sentences: list[list[list[str]]] = [[]]
    for number, (line, row) in enumerate(zip(lines, cells, strict=True), start=1):
        if not row or line.split()[0] == _DOCUMENT:
            sentences.append([])
        elif line.startswith("#") and (len(row) != width or _COMMENT.match(line)):
            continue
        elif len(row) != width or not all(row):
            raise ValueError(
                f"line {number} has {count_of(sum(map(bool, row)), 'cell')} and the first line with a token has "
                f"{width}; correct it, and put an empty line between sentences"
            )
        else:
            sentences[-1].append(row)
    sentences = [own for own in sentences if own]
    found = {name: [[row[place] for row in own] for own in sentences] for place, name in enumerate(_names(width))}
    return found, len(sentences)


def _cells(line: str, by_tabs: bool) -> list[str]:
    """Return the cells of a line; none of one that ends a sentence."""
    if not line.strip():
        return []
    return [cell.strip(" ") for cell in line.rstrip("\t ").split("\t")] if by_tabs else line.split()


def _names(width: int) -> list[str]:
    return ["tokens", *(f"column {number}" for number in range(2, width)), *(["tags"] if width > 1 else [])]
