"""Writes files whole or not at all, so that they survive a loss of power, and checks them by their digests."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fftmoe.errors import OutputError, RunError
from fftmoe.shown import count_of

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700  # only their owner can read them
THREADS = 8  # files that are forced to the disk together, which takes hardly longer than one


class DamagedFileError(RunError):
    """Reports that a file does not have the bytes that were written; the message names the file and the difference."""


def write_atomically(path: Path, data: bytes, durable: bool = True, private: bool = True) -> None:
    """Write a temporary file next to `path` and rename it.

    Args:
        durable: force the bytes and the name to the disk.
        private: only the owner can read the file; otherwise the permissions are the usual ones of the process.
    """
    write_together({path: data}, durable, private)


def write_together(files: Mapping[Path, bytes], durable: bool = True, private: bool = True) -> None:
    """Write several files as `write_atomically` does, waiting for the disk once; they are renamed in this order."""
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    with disk_errors(next(iter(files))):
        try:
            for path, data in files.items():
                if private:
                    temporary[path].touch(PRIVATE_FILE)  # from the start, before it holds anything
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


def rewrite(path: Path, data: bytes) -> None:
    """Write over the first bytes of a small file in place, which needs no space on most disks.

    A loss of power leaves the former bytes or these. So does a disk that takes a part of them only.

    Raises:
        OSError: the disk refuses them; the file is as before, unless the disk refuses that too.
    """
    handle = os.open(path, os.O_RDWR)
    try:
        former = os.pread(handle, len(data), 0)
        if os.pwrite(handle, data, 0) != len(data):  # a full disk writes a part and reports no error
            os.pwrite(handle, former, 0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can read, with its missing parents, and force them to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    sync(*(folder.parent for folder in missing))


def sync(*paths: Path) -> None:
    """Force the bytes of files, and the names in folders, to the disk."""
    in_parallel(_sync, paths)


def remove(*paths: Path) -> None:
    """Remove files, several together because removing a synced file waits for the disk."""
    in_parallel(Path.unlink, paths)


def in_parallel(work: Callable[[Path], None], paths: Sequence[Path]) -> None:
    """Call `work` for every path, in threads where there are several."""
    if len(paths) > 1:
        with ThreadPoolExecutor(THREADS) as pool:
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
    """Remove the temporary files that a killed process has left."""
    for path in folder.glob(".*.tmp"):
        # Of a link only itself: what it leads to is somebody else's.
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """Return the SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_whole(path: Path, digest: str, size: int | None = None) -> bytes:
    """Return the bytes of a file, or its first `size` bytes.

    Raises:
        DamagedFileError: the file cannot be read, is too short, or has another SHA-256 than `digest`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}") from error
    if size is not None and len(data) < size:
        raise DamagedFileError(f"{path} has {count_of(len(data), 'byte')}, but {size:,} were written")
    if sha256(data[:size]) != digest:
        raise DamagedFileError(f"{path} has changed since it was written: its SHA-256 is another")
    return data[:size]


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the refusal of a write (full disk, no permission) into an `OutputError` with one line for a person."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {path}: {reason}; {_remedy(path, error)}") from error


def _remedy(path: Path, error: Exception) -> str:
    """Return what a person can do about a refused write, whichever command wrote:
    not each of them has an `--output`.
    """
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        missing = next((folder for folder in reversed((path, *path.parents)) if not folder.is_dir()), path)
        return f"{missing} is no folder, or is there no longer; make it, or put it back"
    if number == errno.EISDIR:
        return "name a file, which may lie in that folder"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "let this user write there, or use a folder where it can"
    if number == errno.ENAMETOOLONG:
        return "use a folder with a shorter name"
    return "free space there, or use a folder on another disk"
