"""Allows one process per folder: a lock that its holder's end releases, and a file with facts about the holder."""

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
TRIES = 10  # to lock a folder, because `holder` locks it for a moment


@contextmanager
def running(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder for this process while the block runs; `deploy status` and `deploy stop` read `facts`.

    Raises:
        InputError: another process holds it.
    """
    with disk_errors(folder):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _lock(handle):
            other = holder(folder) or {}
            raise InputError(
                f"{folder} is in use by process {other.get('pid', '(unknown)')}; a folder allows one process: "
                f"end that one with `fftmoe deploy stop {folder}`"
            )
        write_atomically(folder / FACTS, json.dumps({**facts, "pid": os.getpid()}).encode())
        (folder / FACTS).chmod(0o600)  # a server's facts hold the token of its control port
        try:
            yield
        finally:
            (folder / FACTS).unlink(missing_ok=True)
    finally:
        os.close(handle)


def holder(folder: Path) -> dict[str, Any] | None:
    """The facts of the process that holds the folder now; None if no process does.

    The facts are empty while that process starts or ends.
    """
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
            return {}
    finally:
        os.close(handle)


def stop(folder: Path, seconds: float) -> bool:
    """End the process that holds the folder, and wait for its end; False if there is no such process.

    Raises:
        RunError: it has not ended after this many seconds.
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


def _lock(handle: int) -> bool:
    """Lock an open file exclusively; False if another process keeps it locked."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(LOOK_SECONDS)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
    return False
