"""Gives each folder one owner: a lock that the kernel releases when its process ends, and a note about that process.

Looking reads the note and never takes the lock, so nobody who looks can keep out a process that starts. A lock whose
process is dead, even one that was killed, is taken over.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fftmoe.errors import InputError
from fftmoe.store.files import PRIVATE_FILE, disk_errors, make_folder
from fftmoe.strict import exact_json, read_small, strict_json

LOCK = "lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of a file system that cannot lock


class Owner(NamedTuple):
    """Names the process that owns a folder.

    Attributes:
        pid: its number; None while it starts.
        host: the machine that it runs on.
        started: when it was started, in the kernel's own count, because another process can get the same number; None
            where the kernel does not tell.
    """

    pid: int | None
    host: str
    started: int | None

    @property
    def is_here(self) -> bool:
        """Return whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def words(self) -> str:
        """Return the process for a person."""
        return f"process {self.pid or '(starting)'}" + ("" if self.is_here else f" on the machine {self.host}")


@contextmanager
def owned(
    folder: Path, release: Callable[[Path], str] = lambda folder: "wait for its end, or end it"
) -> Iterator[None]:
    """Own a folder while the block runs; a folder that does not exist is made, and removed if it stays empty.

    Args:
        release: what a person can do about another owner, for the message.

    Raises:
        InputError: another process owns it. OutputError: the folder cannot be written.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with disk_errors(folder):
        make_folder(folder)
    try:
        handle = _take(folder / LOCK)
        if handle is None:
            found = owner_of(folder) or Owner(None, socket.gethostname(), None)
            raise InputError(f"{folder} is in use by {found.words}; {release(folder)}")
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink()
            os.close(handle)
    finally:
        with suppress(OSError):  # it holds something
            for place in missing:
                place.rmdir()


def owner_of(folder: Path) -> Owner | None:
    """Return the process that owns a folder now; None if there is none, or if it has died. Nothing is locked or
    changed.

    Of a process on another machine, nobody here can tell whether it is alive: it counts as alive.
    """
    try:
        found = _read_note(read_small(folder / LOCK))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return Owner(None, socket.gethostname(), None)  # it is starting, or cannot be read
    return found if _is_alive(found) else None


def check_free(folder: Path, release: Callable[[Path], str] = lambda folder: "wait for its end, or end it") -> None:
    """Refuse a folder that another process owns, before any work is done; `owned` decides in the end.

    Raises:
        InputError: another process owns it.
    """
    found = owner_of(folder)
    if found is not None and found.pid is not None and found.is_here and found.pid != os.getpid():
        raise InputError(f"{folder} is in use by {found.words}; {release(folder)}")


def _take(path: Path) -> int | None:
    """Return an open and locked file with a note about this process; None if another process holds it."""
    while True:
        with disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
        try:
            if not _lock(handle, path):
                os.close(handle)
                return None
            if _is_file(handle, path):  # not one that its last owner has just removed
                with disk_errors(path):
                    os.ftruncate(handle, 0)
                    os.write(handle, exact_json(_own_note()).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        found = owner_of(path.parent)  # the note decides
        return found is None or found.pid is None
    return True


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read_note(data: bytes) -> Owner:
    """Return the process of a note. Numbers that name no single process are refused: a signal to -1 goes to all of
    them.

    Raises:
        ValueError, TypeError: it is no note.
    """
    found = Owner(**strict_json(data))
    is_valid = type(found.pid) is int and found.pid > 0 and isinstance(found.host, str)
    if not is_valid or not (found.started is None or type(found.started) is int):
        raise ValueError(f"its note is {found!r:.100}")
    return found


def _own_note() -> Mapping[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _start_of(os.getpid())}


def _is_alive(owner: Owner) -> bool:
    if not owner.is_here or owner.pid is None:
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except OverflowError:
        return False  # no process has such a number
    except OSError:
        pass  # it belongs to another user
    started = _start_of(owner.pid)  # a note without it names no process where the kernel tells
    return started is None or started == owner.started


def _start_of(pid: int) -> int | None:
    """Return when a process was started, in ticks since the machine was;
    0 for one that has ended and whose parent has not asked for its exit status; None where /proc does not tell.
    """
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if state in "ZX" else int(values[18])
    except (OSError, ValueError, IndexError):
        return None
