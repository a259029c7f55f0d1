"""Files that are written whole or not at all, that outlast a loss of power, and that are known by their digests."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fftmoe.errors import OutputError, RunError

AT_ONCE = 8  # files that wait for the disk side by side, which takes it little longer than one


class Damaged(RunError):
    """A file has other bytes than it was written with; the message says which, and how."""


def write_atomically(path: Path, data: bytes, durable: bool = True) -> None:
    """Write to a temporary file beside `path`, rename it into place; `durable`: both are forced to the disk."""
    write_together({path: data}, durable)


def write_together(files: Mapping[Path, bytes], durable: bool = True) -> None:
    """Write files as `write_atomically` does, waiting for the disk once; they come into place in this order."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    with disk_errors(next(iter(files))):
        try:
            for path, data in files.items():
                temporary[path].write_bytes(data)
            if durable:
                sync(*temporary.values())
            for path in files:
                os.replace(temporary[path], path)
            if durable:
                sync(*{path.parent for path in files})
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, and force them to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    sync(*(folder.parent for folder in missing))


def sync(*paths: Path) -> None:
    """Force the bytes of files, and the names in folders, to the disk."""
    _at_once(_sync, paths)


def remove(*paths: Path) -> None:
    """Take files away. That of a file which is on the disk waits for the disk."""
    _at_once(Path.unlink, paths)


def _at_once(work: Callable[[Path], None], paths: Sequence[Path]) -> None:
    if len(paths) > 1:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(work, paths))
    else:
        for path in paths:
            work(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(folder: Path) -> None:
    """What a process that was killed in the middle of a write has left."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_whole(path: Path, digest: str, size: int | None = None) -> bytes:
    """A file, or its first `size` bytes.

    Raises:
        Damaged: it cannot be read, or is not what this is the SHA-256 of.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    if size is not None and len(data) < size:
        raise Damaged(f"{path} has {len(data)} bytes of {size}")
    if sha256(data[:size]) != digest:
        raise Damaged(f"{path} has other bytes than it was written with")
    return data[:size]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a refusal to write (full disk, no permission) into one message for a person."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {path}: {reason}; free space or name another place with --output") from error
