"""Inputs for a finished model: texts and images without labels, from files of every kind."""

from collections.abc import Sequence
from pathlib import Path

import datasets
import torch
from torch import Tensor

from fftmoe.data.images import read_pixels
from fftmoe.data.read import SUFFIXES, Table, read_table
from fftmoe.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_texts(path: Path, column: str) -> list[str]:
    """The texts of a file: one per line, or a column of .csv, .jsonl or .parquet; empty ones are left out.

    Raises:
        InputError: the file cannot be read, or has no such column of texts.
    """
    if path.suffix[1:] in SUFFIXES:
        texts = _column(read_table(path, (column,)), column)
    else:
        try:
            texts = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise InputError(f"cannot read --file {path}: {reason}; it should hold one text per line") from error
    wrong = next((text for text in texts if not isinstance(text, str | None)), None)
    if wrong is not None:
        raise InputError(f"{path}: column {column!r} holds {wrong!r:.50}, which is not a text; name another column")
    return [text for text in texts if text and text.strip()]


def read_images(places: Sequence[Path], column: str, size: tuple[int, int]) -> tuple[list[str], Tensor]:
    """Images of files, of all image files in a folder, or of a column of a .parquet or .jsonl file.

    Args:
        size: height and width to which every image is resized.

    Returns:
        a name for each image, its file's path or `{file}:{row}`; the pixels, uint8 [N, 3, H, W].

    Raises:
        InputError: a place cannot be read, or holds no image.
    """
    names: list[str] = []
    pixels: list[Tensor] = []
    for place in places:
        table, own = _table(place, column)
        names += own
        pixels.append(read_pixels(table, column, size))
    return names, torch.cat([torch.zeros(0, 3, *size, dtype=torch.uint8), *pixels])


def _table(place: Path, column: str) -> tuple[Table, list[str]]:
    """A file or folder as a table with this column, and the names of its rows."""
    if place.suffix[1:] in SUFFIXES:
        table = read_table(place)
        _column(table, column)
        return table, [f"{place}:{row}" for row in range(1, table.rows.num_rows + 1)]
    files = [str(file) for file in _files(place)]
    return Table(str(place), datasets.Dataset.from_dict({column: files})), files


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        if not place.is_file():
            raise InputError(f"there is no image file, folder of images or table at {place}; name one")
        return [place]
    found = sorted(file for file in place.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(
            f"the folder {place} holds no image; it may hold files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def _column(table: Table, column: str) -> list:
    if column not in table.rows.column_names:
        raise InputError(
            f"{table.where} has no column {column!r}; it has {', '.join(table.rows.column_names)}: name one of them "
            "with --column"
        )
    return list(table.rows[column])
