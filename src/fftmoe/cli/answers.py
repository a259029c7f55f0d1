"""Writes the answers of `fftmoe predict` as lines of JSON."""

import sys
from collections.abc import Mapping
from typing import Any

from fftmoe.shown import shown_json
from fftmoe.strict import json_text


def answer_line(row: Mapping[str, Any], ascii_only: bool) -> str:
    """Return an answer as a line, in which no character acts on a terminal."""
    return shown_json(json_text(row, ascii_only=ascii_only)) + "\n"


def on_terminal() -> bool:
    """Return whether standard output is read by a person as it is written."""
    return sys.stdout.isatty()


class LineInPieces:
    """Writes the line of one completed prompt to standard output piece by piece, while the model writes.

    Args:
        prompt: that is completed.
        ascii_only: see `answer_line`.
    """

    def __init__(self, prompt: str | None, ascii_only: bool) -> None:
        self._ascii_only, self._written = ascii_only, ""
        self._head = answer_line({"prompt": prompt, "completion": ""}, ascii_only).removesuffix('"}\n')

    def add(self, text: str) -> None:
        """Write the next piece of the completion."""
        sys.stdout.write(("" if self._written else self._head) + self._escaped(text))
        sys.stdout.flush()
        self._written += text

    def rest(self, row: Mapping[str, Any]) -> str:
        """Return what is missing of the line; the line as a whole if the answer is not what its pieces said."""
        completion = row["completion"]
        if not self._written:
            return answer_line(row, self._ascii_only)
        if completion is None or not completion.startswith(self._written):
            return "\n" + answer_line(row, self._ascii_only)
        return self._escaped(completion.removeprefix(self._written)) + '"}\n'

    def _escaped(self, text: str) -> str:
        return answer_line({"": text}, self._ascii_only).removeprefix('{"": "').removesuffix('"}\n')
