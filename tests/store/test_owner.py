"""A folder has one owner: others are refused, a dead one is replaced, and looking changes nothing."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from fftmoe.errors import InputError
from fftmoe.store.owner import LOCK, check_free, owned, owner_of
from holding import held
from interrupting import Killed

HOLD = """
import sys, time
from pathlib import Path
from fftmoe.store.owner import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_the_owner_is_dead(tmp_path: Path):
    folder = tmp_path / "deep" / "run"
    with held(HOLD, folder) as process:
        found = owner_of(folder)
        assert found is not None
        assert (found.pid, found.is_here) == (process.pid, True)
        before = (folder / LOCK).read_bytes()
        for refusing in (owned(folder), owned(folder / ".." / "run")):
            with pytest.raises(InputError, match=f"in use by process {process.pid}"), refusing:
                raise AssertionError
        with pytest.raises(InputError, match=f"in use by process {process.pid}"):
            check_free(folder)
        assert (folder / LOCK).read_bytes() == before
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert (folder / LOCK).exists()  # nobody has cleaned up
    assert owner_of(folder) is None
    check_free(folder)
    with owned(folder):
        assert owner_of(folder) == (
            os.getpid(),
            socket.gethostname(),
            json.loads((folder / LOCK).read_text())["started"],
        )
    assert list(folder.iterdir()) == []


def test_a_killed_owner_whose_parent_has_not_noticed_is_dead(tmp_path: Path):
    with held(HOLD, tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        ends = time.monotonic() + 30
        while owner_of(tmp_path) is not None and time.monotonic() < ends:
            time.sleep(0.01)
        assert owner_of(tmp_path) is None
        with owned(tmp_path):
            pass


def test_a_process_with_the_number_of_a_dead_owner_is_not_the_owner(tmp_path: Path):
    note = {"pid": os.getpid(), "host": socket.gethostname(), "started": 1}
    (tmp_path / LOCK).write_text(json.dumps(note))
    assert owner_of(tmp_path) is None
    with owned(tmp_path):
        pass


def test_nobody_can_tell_whether_an_owner_on_another_machine_is_alive(tmp_path: Path):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 2, "host": "elsewhere.example.org", "started": 5}))
    found = owner_of(tmp_path)
    assert found is not None
    assert "process 2 on the machine elsewhere.example.org" in found.words
    with owned(tmp_path):  # the lock can tell, where the file system has locks: its process holds it no more
        pass


def test_where_the_file_system_has_no_locks_the_note_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with held(HOLD, tmp_path) as process:
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(InputError, match=f"in use by process {process.pid}"), owned(tmp_path):
            raise AssertionError
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    with owned(tmp_path):
        pass
    (tmp_path / LOCK).write_text(json.dumps({"pid": 2, "host": "elsewhere.example.org", "started": 5}))
    with pytest.raises(InputError, match="on the machine elsewhere"), owned(tmp_path):
        raise AssertionError


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path: Path):
    with pytest.raises(Killed), owned(tmp_path / "deep" / "run"):
        raise Killed
    assert list(tmp_path.iterdir()) == []
    with owned(tmp_path / "deep" / "run"):
        (tmp_path / "deep" / "run" / "file").touch()
    assert (tmp_path / "deep" / "run" / "file").exists()


NO_NOTES = [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"]
STRANGE = [-1, 0, True, "2", 2**70, None, [2]]  # a signal to -1 goes to all processes, to 0 to all of the group


@pytest.mark.parametrize("pid", STRANGE)
@pytest.mark.parametrize("started", [None, 1])
def test_a_note_that_names_no_single_process_names_nobody(tmp_path: Path, pid: object, started: int | None):
    """A folder can come from somebody else, who wrote the note."""
    (tmp_path / LOCK).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "started": started}))
    found = owner_of(tmp_path)
    assert found is None or found.pid is None


@pytest.mark.parametrize("pid", [pytest.param(1, id="the first process"), pytest.param(os.getpid(), id="this process")])
def test_a_note_that_does_not_say_when_its_process_started_names_nobody(tmp_path: Path, pid: int):
    """Process 1 belongs to another user, unless the test runs as root."""
    for started in (None, 7):
        (tmp_path / LOCK).write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "started": started}))
        assert owner_of(tmp_path) is None


@pytest.mark.parametrize("note", NO_NOTES)
def test_an_unreadable_note_does_not_keep_anybody_out(tmp_path: Path, note: bytes):
    (tmp_path / LOCK).write_bytes(note)
    check_free(tmp_path)
    with owned(tmp_path):
        pass
