"""One process per folder: a lock that ends with its holder, and beside it what the holder is and how to reach it."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError, RunError
from fftmoe.store import disk_errors, write_atomically
from fftmoe.strict import read_small, strict_json

LOCK, FACTS = "lock", "running.json"
LOOK_SECONDS = 0.1


@contextmanager
def running(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder for this process while the block runs; `facts` are for `deploy status` and `deploy stop`.

    Raises:
        InputError: another process holds it.
    """
    with disk_errors(folder):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = holder(folder) or {}
            raise InputError(
                f"{folder} is in use by process {other.get('pid', '(unknown)')}; one runs from a folder at a time: "
                f"end it with `fftmoe deploy stop {folder}`"
            ) from None
        write_atomically(folder / FACTS, json.dumps({**facts, "pid": os.getpid()}).encode())
        (folder / FACTS).chmod(0o600)  # a server's facts hold the token of its control port
        try:
            yield
        finally:
            (folder / FACTS).unlink(missing_ok=True)
    finally:
        os.close(handle)


def holder(folder: Path) -> dict[str, Any] | None:
    """The facts of the process that holds the folder now; None where none does, whatever a dead one left."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        try:
            return strict_json(read_small(folder / FACTS))
        except (OSError, ValueError):
            return {}  # it is just starting or ending
    finally:
        os.close(handle)


def stop(folder: Path, seconds: float) -> bool:
    """End the process that holds the folder, and wait until it has; False if there was none.

    Raises:
        RunError: it had not ended after so many seconds.
    """
    facts = holder(folder)
    if facts is None:
        return False
    ends = time.monotonic() + seconds
    while not facts and time.monotonic() < ends:
        time.sleep(LOOK_SECONDS)
        facts = holder(folder)
        if facts is None:
            return True
    pid = int((facts or {})["pid"])
    os.kill(pid, signal.SIGTERM)
    while holder(folder) is not None:
        if time.monotonic() > ends:
            raise RunError(f"process {pid} of {folder} has not ended within {seconds:g} s; end it with: kill -9 {pid}")
        time.sleep(LOOK_SECONDS)
    return True
