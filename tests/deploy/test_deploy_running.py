"""One process per folder: others are refused, a dead one does not count, and a running one can be stopped."""

import json
import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from fftmoe.deploy.running import FACTS, holder, running, stop
from fftmoe.errors import InputError, RunError
from fftmoe.store import owned
from fftmoe.store.owner import LOCK
from holding import held

HOLD = """
import signal, sys, time
from pathlib import Path
from fftmoe.deploy.running import running
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with running(Path(sys.argv[1]), {"output": "runs/x"}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_and_its_facts_can_be_read(tmp_path: Path):
    assert holder(tmp_path) is None
    with held(HOLD, tmp_path, "willing") as process:
        assert holder(tmp_path) == {"output": "runs/x", "pid": process.pid}
        assert (tmp_path / FACTS).stat().st_mode & 0o077 == 0
        with pytest.raises(InputError, match=f"in use by process {process.pid};.*deploy stop"), running(tmp_path, {}):
            pass
        assert stop(tmp_path, 30.0)
        process.wait(timeout=30)
    assert holder(tmp_path) is None
    assert not stop(tmp_path, 1.0)


def test_the_files_of_a_killed_process_do_not_hold_the_folder(tmp_path: Path):
    with held(HOLD, tmp_path, "willing") as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert (tmp_path / FACTS).exists()
    assert holder(tmp_path) is None
    with running(tmp_path, {"output": "again"}):
        assert (holder(tmp_path) or {})["output"] == "again"
    assert not (tmp_path / FACTS).exists()


@pytest.mark.parametrize("pid", [-1, 0, os.getppid()])
def test_a_note_of_somebody_else_ends_no_process(tmp_path: Path, pid: int, monkeypatch: pytest.MonkeyPatch):
    """The folder can come from somebody else, whose note names all processes, or one that does not own the folder."""
    (tmp_path / LOCK).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "started": None}))
    signals: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: signals.append(number))
    with suppress(RunError):
        stop(tmp_path, 0.2)
    assert not any(signals)  # 0 asks whether there is a process


def test_a_process_that_does_not_end_is_named(tmp_path: Path):
    with held(HOLD, tmp_path, "deaf") as process:
        with pytest.raises(RunError, match=f"process {process.pid} .* kill -9 {process.pid}"):
            stop(tmp_path, 0.5)


def test_looking_at_a_folder_never_refuses_a_process_that_starts(tmp_path: Path):
    """Somebody looks all the time, and another process takes the folder a hundred times."""
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            holder(tmp_path)

    looking = [threading.Thread(target=look) for _ in range(3)]
    for thread in looking:
        thread.start()
    try:
        for _ in range(100):
            with running(tmp_path, {"output": "runs/y"}):
                pass
    finally:
        ended.set()
        for thread in looking:
            thread.join()
    assert list(tmp_path.iterdir()) == []


def test_facts_of_a_dead_process_are_not_those_of_the_one_that_starts(tmp_path: Path):
    """Between taking the folder and writing its facts, `deploy stop` must not end a stranger with an old number."""
    with owned(tmp_path):
        (tmp_path / FACTS).write_text('{"pid": 1, "output": "runs/old"}')
        assert holder(tmp_path) == {}
