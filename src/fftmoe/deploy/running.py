"""Allows one process per folder of a deployment, and keeps facts about it for `deploy status` and `deploy stop`."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fftmoe.errors import InputError, RunError
from fftmoe.shown import quoted
from fftmoe.store import owned, owner_of, write_atomically
from fftmoe.strict import exact_json, read_small, strict_json

FACTS = "running.json"
OWNER_POLL_SECONDS = 0.1


@contextmanager
def running(folder: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder for this process while the block runs; `deploy status` and `deploy stop` read `facts`.

    Raises:
        InputError: another process holds it.
    """
    with owned(
        folder, lambda folder: f"a folder allows one process: end that one with `fftmoe deploy stop {quoted(folder)}`"
    ):
        # Only its owner can read it: a server's facts hold the token of its control port.
        write_atomically(folder / FACTS, exact_json({**facts, "pid": os.getpid()}).encode())
        try:
            yield
        finally:
            (folder / FACTS).unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """Return the facts of the process that holds the folder now; None if no process does. Looking changes and locks
    nothing.

    The facts are empty while that process starts or ends.
    """
    owner = owner_of(folder)
    if owner is None:
        return None
    try:
        facts = strict_json(read_small(folder / FACTS))
    except (OSError, ValueError):
        return {}
    return facts if facts.get("pid") == owner.pid else {}  # otherwise those of a process that was killed


def stop(folder: Path, seconds: float) -> bool:
    """End the process that holds the folder, and wait for its end; False if there is no such process.

    Raises:
        InputError: it runs on another machine. RunError: it has not ended after this many seconds.
    """
    ends = time.monotonic() + seconds
    while (owner := owner_of(folder)) is not None and not holder(folder) and time.monotonic() < ends:
        time.sleep(OWNER_POLL_SECONDS)
    if owner is None:
        return False
    if not owner.is_here:
        raise InputError(f"{folder} is in use by {owner.words}; run `fftmoe deploy stop` there")
    if owner.pid is None:
        raise RunError(f"the process of {folder} has not said who it is within {seconds:g} s; end it by hand")
    try:
        os.kill(owner.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError as error:
        raise RunError(f"process {owner.pid} of {folder} belongs to another user, who can end it") from error
    while owner_of(folder) is not None:
        if time.monotonic() > ends:
            raise RunError(
                f"process {owner.pid} of {folder} has not ended within {seconds:g} s; end it with: kill -9 {owner.pid}"
            )
        time.sleep(OWNER_POLL_SECONDS)
    return True
