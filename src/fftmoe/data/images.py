"""Holds labelled images: decoded and resized once, kept as bytes, and normalised batch by batch."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fftmoe.data.examples import Rows
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fftmoe.strict import read_small

# Pillow knows other formats, but some of them start a program (EPS), and others are rare and little tested.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_FILE_BYTES = 2**28
MAX_SIDE = 2**16  # of an image, as in JPEG; resizing needs memory for each of them
MAX_PIXELS = 2**26  # more than all but a few cameras take; a file of a few bytes can claim any number


@dataclass(frozen=True)
class ImageExamples:
    """Holds N images of one size with their labels, which a model reads as (pixel * scale - mean) / std.

    Attributes:
        pixels: uint8 [N, 3, H, W], a quarter of the memory of float32.
        labels: int64 [N].
        mean: one for each of the three channels, as `std`.
        scale: the factor on pixels from 0 to 255, mostly 1/255.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Return ones, int64 [N]: every image costs the same."""
        return self._lengths

    @cached_property
    def _lengths(self) -> Tensor:  # found once: a batch of few examples must not cost as much as all of them
        return torch.ones(len(self), dtype=torch.int64)

    def select(self, rows: Rows, /) -> "ImageExamples":
        """Return the images at `rows`, in that order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return ImageExamples(self.pixels[rows], self.labels[rows], self.mean, self.std, self.scale)

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Return `pixel_values`, float32 [B, 3, H, W], and `labels`, int64 [B], of the images at `rows`."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return {"pixel_values": (self.pixels[rows].float() * self.scale - mean) / std, "labels": self.labels[rows]}


NO_IMAGE = "there is no image"


def readable_pixels(
    values: Iterable[Any], folder: Path | None, size: tuple[int, int]
) -> tuple[list[str | None], Tensor]:
    """Return the images of N cells or files as far as they can be read, as `read_pixels` gives them.

    Args:
        values: cells of a table, or paths (`Path`) of files that a person named.

    Returns:
        for each of the N why it is left out, `NO_IMAGE` for an empty cell, else None; and uint8 [images, 3, H, W].
    """
    reasons: list[str | None] = []
    found = [np.zeros((0, *size, 3), dtype=np.uint8)]
    for value in values:
        reason = NO_IMAGE if _encoded(value) in (None, "", b"") else None
        if reason is None:
            try:
                found.append(_pixels(value, folder, size)[None])
            except Exception as error:  # every format fails in its own ways
                reason = f"the image cannot be read: {_reason(error)}"
        reasons.append(reason)
    return reasons, torch.from_numpy(np.concatenate(found)).permute(0, 3, 1, 2).contiguous()


def read_pixels(table: Table, column: str, size: tuple[int, int]) -> Tensor:
    """Return the images of a column, resized (bilinear); grey becomes three equal channels.

    Args:
        column: holds `datasets.Image`, encoded files (PNG, JPEG) as bytes, the paths of such files from the table's own
            folder, or lists of whole numbers from 0 to 255, [H, W] or [H, W, 3].
        size: height and width of every result.

    Returns:
        uint8 [N, 3, H, W].

    Raises:
        InputError: an image is missing or cannot be read.
    """
    height, width = size
    pixels = np.empty((table.num_rows, height, width, 3), dtype=np.uint8)
    for row, value in enumerate(table.columns[column]):
        try:
            pixels[row] = _pixels(value, table.folder_of(row), size, table.folder)
        except Exception as error:  # every format fails in its own ways
            raise InputError(
                f"{table.where}: column {column!r} holds no image in row {table.origin.row(row)}{_file_named(value)}: "
                f"{_reason(error)}; "
                "an image is an encoded file (PNG, JPEG), the path of one from the table's own folder, or a list of "
                "whole numbers from 0 to 255: correct or remove the row, or name another column with data.image"
            ) from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _pixels(value: Any, folder: Path | None, size: tuple[int, int], whole: Path | None = None) -> np.ndarray:
    """Return the image in a cell, uint8 [H, W, 3]; some exception with a reason if there is none."""
    height, width = size
    decoded = decode_image(value, folder, whole).convert("RGB")
    return np.asarray(decoded.resize((width, height), Image.Resampling.BILINEAR))


def decode_image(value: Any, folder: Path | None, whole: Path | None = None) -> Image.Image:
    """Return the image in a table's cell, or in a file that a person named (`Path`);
    an exception with a reason if none is.

    Args:
        folder: from which names of files in a cell are meant. whole: the folder of the data, which such names may not
            leave; None: the same.
    """
    value = _encoded(value)
    if value is None:
        raise ValueError("the value is empty")
    if isinstance(value, list | np.ndarray):
        return Image.fromarray(_array(value))
    if not isinstance(value, bytes | str | Path):
        raise TypeError(f"{value!r:.50} is a value of type {type(value).__name__}")
    if not isinstance(value, bytes):
        value = read_small(
            value if isinstance(value, Path) else _inside(folder, value, whole or folder), MAX_FILE_BYTES
        )
    decoded = Image.open(io.BytesIO(value), formats=IMAGE_FORMATS)
    if decoded.width * decoded.height > MAX_PIXELS:  # known before anything is unpacked
        raise ValueError(f"it has {decoded.width} x {decoded.height} pixels, and at most {MAX_PIXELS} are read")
    if max(decoded.size) > MAX_SIDE:
        raise ValueError(f"it has {decoded.width} x {decoded.height} pixels, and a side has at most {MAX_SIDE}")
    if decoded.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels have more than 8 bits (mode {decoded.mode})")
    ImageOps.exif_transpose(decoded, in_place=True)  # the other way copies what is not turned
    return decoded


def _encoded(value: Any) -> Any:
    """Return what a cell holds; a cell of `datasets.Image` holds the bytes of a file, or its path."""
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def _file_named(value: Any) -> str:
    """Return the name of a file in a cell, for a message: a folder of images has rows for the program only."""
    name = _encoded(value)
    return f" ({name!r:.200})" if isinstance(name, str) else ""


def _inside(folder: Path | None, name: str, whole: Path | None) -> Path:
    """Return the path of a file in the data's folder."""
    if folder is None or whole is None:
        raise ValueError(f"{name!r:.100} is the path of a file, and this data has no folder from which files are read")
    path = (folder / name).resolve()
    if not path.is_relative_to(whole.resolve()):
        raise ValueError(f"{name!r:.100} is not in {whole}, from which paths are read and which they may not leave")
    return path


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)  # ragged lists are a ValueError
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise ValueError(f"its lists have shape {list(array.shape)} and not [height, width] or [height, width, 3]")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError(f"its lists hold {array.dtype} numbers from {array.min()} to {array.max()}")
    return array.astype(np.uint8)


def _reason(error: Exception) -> str:
    return "the file has an unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
