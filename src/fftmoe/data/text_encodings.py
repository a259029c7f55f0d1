"""Names the encoding of text files, and finds the likely one of a text that is not UTF-8."""

import re
from dataclasses import dataclass

from fftmoe.errors import InputError
from fftmoe.strict import text_encoding

try:
    from chardetng_py import detect
except ImportError:  # it is compiled, and not yet for every system with the newest Python: nothing is guessed there
    detect = None

LIKELY_ENCODINGS = {
    "shift_jis": "cp932",  # in place of what a detector of web pages says, the larger one of Windows
    "euc-kr": "cp949",
    "big5": "cp950",
    "gbk": "gb18030",
    **{name: name for name in ("gb18030", "euc-jp", "koi8-u", "ibm866", "utf-16-le", "utf-16-be")},
    **{f"windows-{number}": f"windows-{number}" for number in range(1250, 1259)},
    "windows-874": "cp874",
    **{f"iso-8859-{part}": f"iso-8859-{part}" for part in (2, 4, 5, 6, 7, 8, 13)},
}
"""The codec of Python for each encoding that is guessed; no other is looked up because of what a file holds."""
_NO_TEXT = re.compile("[\0-\b\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f\ud800-\udfff]")
_LOOKED_AT = 2**20  # bytes that decide
_ASCII_LINE = re.compile(rb"[\x00-\x7f]*")
_SHOWN = 60  # characters of a line


@dataclass(frozen=True)
class TextEncoding:
    """Names the encoding of text files that are not UTF-8 and have no byte order mark.

    Attributes:
        name: a codec of Python; None: there are no such files.
        stated_by: how a person states another one, for messages, with `{}` in place of its name.
    """

    name: str | None = None
    stated_by: str = "--set data.encoding={0} (in the recipe: encoding: {0}, below data:)"

    def how_to_state(self, name: str) -> str:
        """Return what a person writes for this encoding."""
        return self.stated_by.format(name)


ENCODING_OPTION = "--encoding {}"
"""How a person states an encoding where a command has an option for it."""
BY_RECIPE = TextEncoding()


def encoding_option(name: str | None) -> TextEncoding:
    """Return the encoding that a person names with `--encoding`; None for UTF-8.

    Raises:
        InputError: there is none of that name.
    """
    try:
        return TextEncoding(name if name is None else text_encoding(name), ENCODING_OPTION)
    except ValueError as error:
        raise InputError(f"--encoding {error}") from error


class OtherEncodingError(InputError):
    """Reports a file that is not UTF-8, where nobody has said what it is, or not in the encoding that was stated.

    Attributes:
        what: the file, and where it is no text. likely: the encoding in which it was most likely written, if any is.
    """

    def __init__(self, what: str, likely: str | None, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what, self.likely = what, likely


def likely_encoding(data: bytes) -> str | None:
    """Return the encoding in which a text that is not UTF-8 was most likely written; None if it is no text, or nothing
    can guess here.
    """
    if (wide := _wide(data)) is not None:
        return wide
    telling = b"\n".join(line for line in data.splitlines() if not line.isascii())[:_LOOKED_AT]
    if not telling or detect is None:
        return None
    name = LIKELY_ENCODINGS.get(detect(telling).lower())
    try:
        return None if name is None or _NO_TEXT.search(data.decode(name)) else name
    except UnicodeError:
        return None


def _wide(data: bytes) -> str | None:
    """Return the encoding of a text whose characters have two bytes, one of which is mostly zero."""
    half = len(data) // 2
    for place, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if half and not len(data) % 2 and data[place::2].count(0) * 2 > half > data[1 - place :: 2].count(0) * 8:
            try:
                return None if _NO_TEXT.search(data.decode(name)) else name
            except UnicodeError:
                return None
    return None


def telling_line(text: str) -> str:
    """Return the part of a text by which a person sees whether its encoding is right: a line with the most different
    letters that depend on it.
    """
    lines = re.split("[\r\n]+", text[: 8 * _LOOKED_AT])
    line = max(lines, key=lambda line: len({character for character in line if not character.isascii()}))
    first = next((place for place, character in enumerate(line) if not character.isascii()), 0)
    start = max(0, min(first - _SHOWN // 3, len(line) - _SHOWN))
    return f"{'…' if start else ''}{line[start : start + _SHOWN]}{'…' if start + _SHOWN < len(line) else ''}"
