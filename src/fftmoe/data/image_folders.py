"""Reads a folder of images by class as a table: `CLASS/image.jpg`, or `CLIENT/CLASS/image.jpg`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fftmoe.data.table import Table
from fftmoe.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CLIENT = "client"
"""The column that names the client of a row, where files or folders of their own say whose it is."""
WITH_CLASS, WITH_CLIENT = 2, 3  # parts of a path


def image_files(folder: Path) -> list[Path]:
    """Return all images in a folder and in the folders below it, in the order of their paths.

    Hidden ones are left out, and links to folders are not followed.

    Raises:
        InputError: a folder cannot be read. Its images would be missing without a word.
    """
    try:
        return sorted(Path(place) / name for place, name in _names(folder) if _is_image(folder, Path(place) / name))
    except OSError as error:
        raise InputError(
            f"the folder {error.filename} cannot be read: {error.strerror}; let this user read it, or move it elsewhere"
        ) from error


def _names(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the folder and the name of all files below a folder; an OSError where one cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((place, name) for name in names)


def read_image_folder(folder: Path) -> Table | None:
    """Return the images of all folders in a folder, one row each, in the order of their paths.

    The columns are `image`, the path below the folder; `label`, the name of the folder that holds the image; and, where
    that lies in a folder of its own, the column `client` with the name of that one. Files of other kinds and names that
    begin with a dot are left out, and links to folders are not followed.

    Returns:
        None if no folder in it, and no folder in these, holds an image.

    Raises:
        InputError: images lie at different depths, a name is no text, or a folder cannot be read.
    """
    # Looking no deeper first: the folder may be a whole project that holds no data.
    if not any(_is_image(folder, path) for depth in ("*/*", "*/*/*") for path in folder.glob(depth)):
        return None
    images = [path.relative_to(folder).parts for path in image_files(folder)]
    _check(folder, images)
    columns = {"image": ["/".join(parts) for parts in images], "label": [parts[-2] for parts in images]}
    if len(images[0]) == WITH_CLIENT:
        columns[CLIENT] = [parts[0] for parts in images]
    return Table(str(folder), columns, len(images), folder=folder)


def _is_image(folder: Path, path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.name.lower().endswith(IMAGE_SUFFIXES) and not hidden and not path.is_dir()


def _check(folder: Path, images: Sequence[tuple[str, ...]]) -> None:
    """Check that all images have a class, and that all or none of them have a client."""
    depths = {len(parts): parts for parts in reversed(images)}
    if len(depths) != 1 or not depths.keys() <= {WITH_CLASS, WITH_CLIENT}:
        shown = " and ".join("/".join(depths[depth]) for depth in sorted(depths)[:2])
        raise InputError(
            f"{folder} holds images such as {shown}; a folder of images by class has CLASS/IMAGE for all of them, or "
            "CLIENT/CLASS/IMAGE: move the others, or name a table with the paths of the images"
        )
    for parts in images:
        try:
            "/".join(parts).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{folder} holds {'/'.join(parts)!r}, a name that is no text in UTF-8; rename it"
            ) from error
