"""Finds the likely encoding of the text files of a source, for a person who has not said it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fftmoe.data.packed_files import file_bytes, file_kind
from fftmoe.data.read import TEXT_SUFFIXES
from fftmoe.data.sources import local_place
from fftmoe.data.text_encodings import likely_encoding, telling_line
from fftmoe.data.text_files import NoTextError, decoded

_DEPTH = 3  # `SPLIT/CLIENT.csv` and `CLIENT/train.csv` lie below this one


@dataclass(frozen=True)
class GuessedEncoding:
    """Holds the likely encoding of the files of a source that are not UTF-8.

    Attributes:
        name: a codec of Python, in which all of them can be read.
        lines: of each file its name and a line of it, by which a person sees whether the guess is right; first those of
            the files that by themselves look like another encoding, with its name.
    """

    name: str
    lines: Sequence[tuple[str, str]]


def guess_encoding(source: str) -> GuessedEncoding | None:
    """Return the one encoding in which all files of a source that are not UTF-8 were most likely written.

    None if all are UTF-8, or no encoding fits.

    Raises:
        InputError: the source cannot be looked up. OSError: a file cannot be read.
    """
    place = local_place(source)
    others = {} if place is None else {path: data for path in _text_files(place) if (data := _other(path)) is not None}
    together = likely_encoding(b"\n".join(data for data in others.values()))
    if together is None:
        return None
    unlike, like = [], []
    for path, data in others.items():
        try:
            text = data.decode(together)
        except UnicodeError:
            return None
        line, alone = telling_line(text), likely_encoding(data)
        if alone is None or data.decode(alone) == text:
            like.append((path.name, line))
        else:
            unlike.append((f"{path.name} (which by itself looks like {alone})", line))
    return GuessedEncoding(together, [*unlike, *like])


def _text_files(place: Path) -> list[Path]:
    files = (
        [place]
        if place.is_file()
        else sorted(path for depth in range(_DEPTH) for path in place.glob("*/" * depth + "*"))
    )
    return [path for path in files if file_kind(path) in TEXT_SUFFIXES and path.is_file()]


def _other(path: Path) -> bytes | None:
    """Return the bytes of a file that is not UTF-8; None for every other one."""
    data = None
    try:
        data = file_bytes(path)
        decoded(data)
    except NoTextError:
        return data
    except ValueError:
        return None
    return None
