"""Reads and writes the files of a deployment: private files, and folders that appear complete or not at all."""

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fftmoe.errors import InputError, OutputError
from fftmoe.shown import quoted
from fftmoe.store.files import PRIVATE_FILE as PRIVATE_FILE
from fftmoe.store.files import PRIVATE_FOLDER
from fftmoe.strict import at_most, exact_json, open_file, strict_json

DEPLOYMENT_FORMAT = 1
PUBLIC_FILE = 0o644
COPY_AGAIN = "copy it again from the folder that `fftmoe deploy init` made"


def check_new(folder: Path) -> Path:
    """Return the absolute path of a folder, if it is new or empty.

    Raises:
        InputError: it holds something, cannot be made, or is the current folder. Nothing has been changed.
    """
    try:
        place = folder.resolve()
        nearest = next(p for p in (place, *place.parents) if p.exists())
        occupied = place.is_dir() and any(place.iterdir())
        current = place == Path.cwd()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise InputError(f"cannot use the folder {folder}: {_system_reason(error)}; name another") from error
    if not nearest.is_dir():
        raise InputError(f"cannot make the folder {folder}: {nearest} is a file; name another")
    if occupied:
        raise InputError(f"the folder {folder} is not empty, and keys are never overwritten; name a new one")
    if current:  # it would be replaced, and the shell would stay in a deleted folder
        raise InputError(f"{folder} is the folder that the command runs in; name a new one below it")
    return place


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `folder` when the block succeeds; otherwise nothing is left behind.

    Raises:
        InputError: see `check_new`. OutputError: the folder cannot be written.
    """
    place = check_new(folder)
    missing = [p for p in place.parents if not p.exists()]
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=".deploy-", dir=place.parent))  # mkdtemp's mode is 0700
        yield temporary
        os.rename(temporary, place)  # fails if somebody has filled the folder meanwhile
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write {folder}: {_system_reason(error)}; free space, or name another folder"
            ) from error
        raise


def make_private_folder(path: Path) -> None:
    """Make a folder that only its owner can enter, in an existing folder."""
    path.mkdir(mode=PRIVATE_FOLDER)


def write_new(path: Path, data: bytes, mode: int = PUBLIC_FILE) -> None:
    """Write a new file, which has this mode from the start, and sync it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def json_bytes(fields: Mapping[str, Any]) -> bytes:
    """Return a JSON file of the format's number and then `fields`."""
    return exact_json({"format": DEPLOYMENT_FORMAT, **fields}, indent=2).encode() + b"\n"


def read_bytes(path: Path, private: bool = False) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: the file is missing, cannot be read or is too large, or it is `private` and other users can read it.
    """
    try:
        with open_file(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)  # of the open file, even if its path changes
            if private and mode & 0o077:
                command = f"chmod 600 {quoted(path)}"
                raise InputError(f"the private key {path} is open to other users (mode {mode:04o}); run: {command}")
            return at_most(file)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {COPY_AGAIN}") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_system_reason(error)}; make it readable, or {COPY_AGAIN}") from error


def read_fields(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """Return the fields of a JSON file of a deployment, which must be exactly these and of these types.

    Raises:
        InputError: the file is missing or damaged, or has another format.
    """
    data = read_bytes(path)
    try:
        fields = strict_json(data)
    except ValueError as error:
        raise damaged(path, f"not JSON ({error})") from error
    if type(fields.get("format")) is not int:
        raise damaged(path, 'it has no {"format": ...}')
    if fields["format"] != DEPLOYMENT_FORMAT:
        raise InputError(
            f"{path} has format {fields['format']}, and this fftmoe reads format {DEPLOYMENT_FORMAT}; "
            "use the version of fftmoe that made the folder, or make a new one with `fftmoe deploy init`"
        )
    if set(fields) != {"format", *types}:
        raise damaged(path, f"it has {', '.join(sorted(fields))} and should have format, {', '.join(types)}")
    for name, expected in types.items():
        if type(fields[name]) is not expected:  # not isinstance, which would accept True as a number
            raise damaged(path, f"{name} is {fields[name]!r} and should be of type {expected.__name__}")
    return fields


def damaged(path: Path, why: str) -> InputError:
    """Return the error for a file that exists but cannot be used."""
    return InputError(f"{path} is damaged or not from `fftmoe deploy init`: {why}; {COPY_AGAIN}")


def _system_reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
