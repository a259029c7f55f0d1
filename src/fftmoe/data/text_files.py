"""Turns the bytes of a text file into characters and lines, the same on every machine and for every caller."""

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins like it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
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


def decoded(data: bytes) -> str:
    """Return the text of a file: UTF-8, or the encoding that its byte order mark names; the mark is no part of the
    text.

    Raises:
        ValueError: it is no such text. The message is the end of a sentence that names the file.
    """
    mark, encoding = next((found for found in _MARKS if data.startswith(found[0])), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _packed(data) or ValueError(f"line {line} is not {encoding.upper()}; save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _packed(data) or ValueError(
            f"line {line} holds the character NUL, so it is no text; remove it, or save the file as UTF-8"
        )
    return text


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
