"""Shows texts that come from data, recipes and other people's machines without letting them act on what shows them."""

import re
import shlex
from pathlib import Path

# Control characters move a terminal's cursor or change its state, the marks of direction reorder what stands beside
# them, and half of a pair of surrogates, as in a file name that is not UTF-8, cannot be written at all.
_REORDERING_OR_BROKEN = "\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_ACTING = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_REORDERING_OR_BROKEN}]")
_IN_JSON = re.compile(f"[\x7f-\x9f{_REORDERING_OR_BROKEN}]")  # JSON itself escapes those below a blank


def shown(text: str) -> str:
    r"""The text with characters that could act on a terminal or a page written as in Python: `\x1b`, `\u202e`.

    Line feeds and tabs stay.
    """
    return _ACTING.sub(lambda found: ascii(found[0])[1:-1], text)


def shown_on_a_line(text: str) -> str:
    """The same on a single line."""
    return shown(text).replace("\n", "\\n")


def shown_json(text: str) -> str:
    """The same JSON: for JSON's readers the same value, for a terminal and for readers of lines harmless."""
    return _IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def quoted(path: Path | str) -> str:
    """The path as a word of a command: pasted into a shell, it names the same path, and is no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
