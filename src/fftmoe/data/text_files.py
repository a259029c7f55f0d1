"""Turns the bytes of a text file into characters and lines, the same on every machine and for every caller."""

import codecs
import re

from fftmoe.data.text_encodings import BY_RECIPE, TextEncoding, likely_encoding, telling_line

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins like it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SURROGATE = re.compile("[\ud800-\udfff]")  # which only some codecs refuse, such as that of UTF-8
_PACKED = {
    b"\x1f\x8b": "packed with gzip",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\0": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"PK\x03\x04": "a zip archive, such as a workbook of Excel",
    b"\xd0\xcf\x11\xe0": "a document of Office",
    b"PAR1": "a parquet file under another name",
}
"""The first bytes of files that people name where a text is expected."""


def decoded(data: bytes, encoding: TextEncoding = BY_RECIPE) -> str:
    """Return the text of a file: in the encoding that its byte order mark names, else in UTF-8, else in the stated one.

    The mark is no part of the text. A text that is valid UTF-8 with other characters than those of ASCII is hardly ever
    anything else, so the stated encoding is for the others.

    Raises:
        NoTextError: it is no such text. The message is the end of a sentence that names the file.
    """
    mark, codec = next((found for found in _MARKS if data.startswith(found[0])), (b"", None))
    codec = codec or _codec(data, encoding)
    try:
        text = data[len(mark) :].decode(codec)
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = data[:start].decode(codec, "ignore").count("\n") + 1
        raise _packed(data) or NoTextError(f"line {line} is not {codec.upper()}", data, codec, encoding) from error
    if codec != "utf-8" and (half := _SURROGATE.search(text)):
        line = text.count("\n", 0, half.start()) + 1
        raise NoTextError(f"line {line} has half of a surrogate pair in {codec.upper()}", data, codec, encoding)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _packed(data) or NoTextError(
            f"line {line} holds the character NUL, so it is no text", data, codec, encoding
        )
    return text


class NoTextError(ValueError):
    """Reports bytes that are no text in the encoding in which they are read.

    Attributes:
        what: where they are none. likely: the encoding in which they are one, if there is such. remedy: what to do.
    """

    def __init__(self, what: str, data: bytes, codec: str, encoding: TextEncoding) -> None:
        self.what, self.likely = what, likely_encoding(data)
        if self.likely in (None, codec) and encoding.name is not None:
            self.remedy = "name another encoding, or save it as UTF-8"
        elif self.likely is None:
            other = "" if b"\0" in data else f", or say what it is: {encoding.how_to_state('NAME')}"
            self.remedy = f"save it as UTF-8{other}"
        else:
            line = telling_line(data.decode(self.likely))
            self.remedy = f"as {self.likely} it reads {line!r}; if that is right: {encoding.how_to_state(self.likely)}"
        super().__init__(f"{what}; {self.remedy}")


def _codec(data: bytes, encoding: TextEncoding) -> str:
    """Return the codec of a text without a byte order mark."""
    if encoding.name is None or data.isascii() or b"\0" in data:
        return encoding.name or "utf-8"
    try:
        data.decode()
    except UnicodeDecodeError:
        return encoding.name
    return "utf-8"


def _packed(data: bytes) -> ValueError | None:
    """Return what to say about bytes that are no text, if their beginning shows what they are instead."""
    what = next((what for first, what in _PACKED.items() if data.startswith(first)), None)
    return None if what is None else ValueError(f"it is {what}, and no text; unpack it, or save it as a text")


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, blank ones too. A line ends with a line feed, a carriage return, or both, and nothing
    else.

    Other characters that Python takes for line ends, such as U+2028 and the form feed, are parts of a line.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines
