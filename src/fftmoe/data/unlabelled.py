"""Reads inputs for a finished model: texts and images without labels, from files of every kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fftmoe.data.image_folders import IMAGE_SUFFIXES, image_files
from fftmoe.data.images import NO_IMAGE, readable_pixels
from fftmoe.data.prompts_asked import with_columns_asked
from fftmoe.data.read import is_table, read_lines, read_table
from fftmoe.data.table import Table
from fftmoe.data.text_encodings import BY_RECIPE, TextEncoding
from fftmoe.errors import InputError


@dataclass(frozen=True)
class GivenTexts:
    """Holds texts that a person asks about, in their order.

    Attributes:
        texts: blank ones too; None where a row has none.
        reasons: for each why it cannot be read as a text, else None; of a row without any there is none.
        where: the file, for messages.
    """

    texts: list[str | None]
    reasons: list[str | None]
    where: str

    def check_texts(self) -> None:
        """Check that every row holds a text, or nothing.

        Raises:
            InputError: one holds something else.
        """
        for row, reason in enumerate(self.reasons, start=1):
            if reason is not None:
                raise InputError(f"{self.where}: in row {row} {reason}; correct the row, or name another column")


def read_texts(
    path: Path, column: str, encoding: TextEncoding = BY_RECIPE, words_column: str | None = None
) -> GivenTexts:
    """Return the texts of a file, one for each line, or for each row of a table.

    Args:
        column: the column of a table. encoding: of a text file.
        words_column: for a model that tags words the column of their lists, which is read where there is no `column`;
            None for any other.

    Raises:
        InputError: the file cannot be read, or has no such column of texts.
    """
    if not is_table(path):
        texts: list[Any] = list(read_lines(path, encoding))
        return GivenTexts(texts, [None] * len(texts), str(path))
    table = read_table(path, encoding)
    if words_column is not None and column not in table.columns and words_column in table.columns:
        column = words_column
    values = list(_with_column(table, column).columns[column])
    if words_column is not None:
        values = [_joined(value) for value in values]
    reasons = [_why_no_text(column, value) for value in values]
    texts = [value if isinstance(value, str) else None for value in values]
    found = GivenTexts(texts, reasons, str(path))
    if all(text is None for text in texts):
        found.check_texts()  # no answer at all: perhaps another column was meant
    return found


def _joined(value: Any) -> Any:
    """Return the text whose words between white space are those of the list; any other value as it is."""
    words = isinstance(value, list) and all(isinstance(word, str) and word.split() == [word] for word in value)
    return " ".join(value) if words else value


def _why_no_text(column: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return f"the column {column!r} holds {value!r:.50}, which is not a text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"the column {column!r} holds {value!r:.50}, which is no text in UTF-8"
    return None


@dataclass(frozen=True)
class NamedImages:
    """Holds images that a person asks about.

    Attributes:
        names: of all images, a file's path or `{file}:{row}`.
        reasons: for each name why there is no image, else None; a row of a table may have none, and a file may be
            damaged.
        pixels: uint8 [N, 3, H, W], of the N images that there are.
    """

    names: list[str]
    reasons: list[str | None]
    pixels: Tensor

    def check_undamaged(self) -> None:
        """Check that every image that there is could be read.

        Raises:
            InputError: one could not.
        """
        for name, reason in zip(self.names, self.reasons, strict=True):
            if reason not in (None, NO_IMAGE):
                raise InputError(f"{name}: {reason}; replace it, or leave it out")


def read_images(
    places: Sequence[Path], column: str, size: tuple[int, int], encoding: TextEncoding = BY_RECIPE
) -> NamedImages:
    """Return images of files, of all image files in a folder and the folders below it, or of a column of a table.

    Args:
        size: height and width to which every image is resized. encoding: of tables that are text files.

    Raises:
        InputError: a place cannot be read, or holds no image; all images are damaged.
    """
    names: list[str] = []
    reasons: list[str | None] = []
    pixels = [torch.zeros(0, 3, *size, dtype=torch.uint8)]
    for place in places:
        if not place.is_dir() and is_table(place):
            table = _with_column(read_table(place, encoding), column)
            names += [f"{place}:{row}" for row in range(1, table.num_rows + 1)]
            own, found = readable_pixels(table.columns[column], table.folder, size)
        else:
            files = _files(place)
            names += map(str, files)
            own, found = readable_pixels(files, None, size)
        reasons += own
        pixels.append(found)
    images = NamedImages(names, reasons, torch.cat(pixels))
    if not len(images.pixels):
        images.check_undamaged()  # no answer at all: perhaps another place or column was meant
    return images


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        if not place.is_file():
            raise InputError(f"there is no image file, folder of images or table at {place}; name one")
        return [place]
    found = image_files(place)
    if not found:
        raise InputError(
            f"the folder {place} holds no image; it may hold files that end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def _with_column(table: Table, column: str) -> Table:
    """Return the same table, which has this column."""
    table = with_columns_asked(table, [column])
    if column not in table.columns:
        raise InputError(
            f"{table.where} has no column {column!r}; it has {', '.join(table.columns)}: name one of them with --column"
        )
    return table
