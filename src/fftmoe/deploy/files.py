"""Files that only their owner can read, in folders that are made whole or not at all."""

import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from fftmoe.errors import InputError, OutputError
from fftmoe.strict import at_most, open_file, strict_json

FORMAT = 1
PRIVATE_FILE, PUBLIC_FILE, PRIVATE_FOLDER = 0o600, 0o644, 0o700
COPY_AGAIN = "copy it again from the folder that `fftmoe deploy init` made"


def check_new(folder: Path) -> Path:
    """The absolute place of a folder that is new or empty.

    Raises:
        InputError: it holds something, cannot be made, or is where the command runs. Nothing has been touched.
    """
    try:
        place = folder.resolve()
        nearest = next(p for p in (place, *place.parents) if p.exists())
        occupied = place.is_dir() and any(place.iterdir())
        current = place == Path.cwd()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise InputError(f"cannot use the folder {folder}: {_reason(error)}; name another") from error
    if not nearest.is_dir():
        raise InputError(f"cannot make the folder {folder}: {nearest} is a file; name another")
    if occupied:
        raise InputError(f"the folder {folder} is not empty, and keys are never written over; name a new one")
    if current:  # it would be replaced, and the shell would be left in a folder that is gone
        raise InputError(f"{folder} is the folder that the command runs in; name a new one below it")
    return place


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes its place if the block ends well, else nothing is left.

    Raises:
        InputError: see `check_new`.
        OutputError: the disk refused.
    """
    place = check_new(folder)
    missing = [p for p in place.parents if not p.exists()]
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(mkdtemp(prefix=".deploy-", dir=place.parent))  # mkdtemp's mode is 0700
        yield temporary
        os.rename(temporary, place)  # refuses a folder that has been filled meanwhile
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {folder}: {_reason(error)}; free space, or name another folder") from error
        raise


def make_private_folder(path: Path) -> None:
    """A folder that only its owner can enter; its parent exists."""
    path.mkdir(mode=PRIVATE_FOLDER)


def write_new(path: Path, data: bytes, mode: int = PUBLIC_FILE) -> None:
    """Write a new file that has this mode from the start, and force it to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def json_bytes(fields: Mapping[str, Any]) -> bytes:
    """`fields` after the format's number, as a JSON file."""
    return json.dumps({"format": FORMAT, **fields}, indent=2).encode() + b"\n"


def read_bytes(path: Path, private: bool = False) -> bytes:
    """A file's bytes.

    Raises:
        InputError: it is missing or unreadable or no small file, or it is `private` and others can read it.
    """
    try:
        with open_file(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)  # of the file that is read, whatever is renamed
            if private and mode & 0o077:
                command = f"chmod 600 {shlex.quote(str(path))}"
                raise InputError(f"the private key {path} is open to other users (mode {mode:04o}); run: {command}")
            return at_most(file)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {COPY_AGAIN}") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {_reason(error)}; make it readable, or {COPY_AGAIN}") from error


def read_fields(path: Path, types: Mapping[str, type]) -> dict[str, Any]:
    """The fields of a JSON file of ours, exactly these and of these types.

    Raises:
        InputError: the file is missing, is damaged, is not ours, or has another format.
    """
    data = read_bytes(path)
    try:
        fields = strict_json(data)
    except ValueError as error:
        raise damaged(path, f"not JSON ({error})") from error
    if type(fields.get("format")) is not int:
        raise damaged(path, 'no {"format": ...} in it')
    if fields["format"] != FORMAT:
        raise InputError(
            f"{path} has format {fields['format']} and this fftmoe reads {FORMAT}; "
            "use the version of fftmoe that made the folder, or make a new one with `fftmoe deploy init`"
        )
    if set(fields) != {"format", *types}:
        raise damaged(path, f"it has {', '.join(sorted(fields))} and should have format, {', '.join(types)}")
    for name, expected in types.items():
        if type(fields[name]) is not expected:  # not isinstance: True is no number here
            raise damaged(path, f"{name} is {fields[name]!r} and should be of type {expected.__name__}")
    return fields


def damaged(path: Path, why: str) -> InputError:
    """The error for a file that is there but cannot be used."""
    return InputError(f"{path} is damaged or not from `fftmoe deploy init`: {why}; {COPY_AGAIN}")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
