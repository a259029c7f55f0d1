"""Reads the bytes of data files, which may be packed with gzip, and tells their kind and their name apart."""

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import IO

from fftmoe.strict import open_file

PACKED = ".gz"
MOST_GROWTH = 200  # bytes that one packed byte may become; text has seldom 20, and a bomb has 1000
ALWAYS = 2**26  # bytes that are unpacked in any case
_PIECE = 2**20


def inner_path(path: Path) -> Path:
    """Return the path without the ending `.gz`: the file's name before it was packed."""
    return path.with_suffix("") if path.suffix.lower() == PACKED and path.stem else path


def file_kind(path: Path) -> str:
    """Return the ending of a file's name in lower case and without a dot, as it was before the file was packed."""
    return inner_path(path).suffix[1:].lower()


def file_stem(path: Path) -> str:
    """Return a file's name without its endings."""
    return inner_path(path).stem


def file_bytes(path: Path) -> bytes:
    """Return the bytes of a regular file, unpacked if its name ends in `.gz`.

    Raises:
        OSError: it cannot be read. ValueError: it is not packed, is damaged, or becomes far too large.
    """
    with open_file(path) as file:
        return _unpacked(file) if path.suffix.lower() == PACKED else file.read()


def _unpacked(file: IO[bytes]) -> bytes:
    most = max(ALWAYS, MOST_GROWTH * os.fstat(file.fileno()).st_size)
    whole = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            while piece := packed.read(_PIECE):
                if whole.tell() + len(piece) > most:
                    raise ValueError(
                        f"unpacked it has more than {most / 2**20:,.0f} MiB, and at most 64 MiB or {MOST_GROWTH} times "
                        "its size are read; unpack it by hand if you trust it"
                    )
                whole.write(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"it is not a whole file of gzip ({error}); pack it again, or name it without .gz") from error
    return whole.getvalue()
