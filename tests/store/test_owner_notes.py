"""Who owns a folder by the note in it: this process, or another one of which a test has written the note."""

import errno
import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fftmoe.errors import InputError
from fftmoe.store import owner
from fftmoe.store.owner import LOCK, Owner, check_free, owned, owner_of

HOST = socket.gethostname()
NO_PROCESS = 2**22 + 1  # above the largest number that the kernel gives


@pytest.fixture
def own(tmp_path: Path) -> Owner:
    """This process, as its note says it."""
    with owned(tmp_path / "own"):
        found = owner_of(tmp_path / "own")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def other() -> Iterator[int]:
    """A process that does nothing, and ends with this one."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid


def note(folder: Path, of: int, **values: Any) -> Path:
    """The folder, with the note of a process in which some values are others."""
    (folder / LOCK).write_text(json.dumps({"pid": of, "host": HOST, "started": started(of), **values}))
    return folder


def started(pid: int) -> int:
    """The 22nd value of /proc/PID/stat, of which the second may hold blanks."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_the_note_names_this_process_while_the_block_runs(own: Owner, tmp_path: Path):
    assert own == Owner(os.getpid(), HOST, started(os.getpid()))
    assert owner_of(tmp_path / "own") is None


def test_a_folder_that_was_made_for_the_block_goes_if_it_stays_empty(tmp_path: Path):
    with owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
    assert not (tmp_path / "a").exists()
    (tmp_path / "kept").mkdir()
    with owned(tmp_path / "kept" / "b"):
        (tmp_path / "kept" / "b" / "result").touch()
    assert (tmp_path / "kept" / "b" / "result").exists()
    with owned(tmp_path / "kept"):
        pass
    (tmp_path / "empty").mkdir()
    with owned(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Owner(7, HOST, 1), "process 7"),
        (Owner(None, HOST, None), "process (starting)"),
        (Owner(7, "elsewhere", 1), "process 7 on the machine elsewhere"),
    ],
)
def test_an_owner_in_words(found: Owner, words: str):
    assert found.words == words


@pytest.mark.parametrize(
    ("values", "owns"),
    [
        ({}, True),
        ({"started": 1}, False),  # another process had this number
        ({"started": None}, False),
        ({"pid": NO_PROCESS}, False),
        ({"pid": 2**70}, False),
        ({"pid": NO_PROCESS, "host": "elsewhere"}, True),  # nobody here can tell
    ],
)
def test_a_note_of_a_process_that_lives_names_the_owner(tmp_path: Path, other: int, values: dict[str, Any], owns: bool):
    expected = Owner(**{"pid": other, "host": HOST, "started": started(other), **values}) if owns else None
    assert owner_of(note(tmp_path, other, **values)) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"pid": 0},
        {"pid": -1},
        {"pid": "1"},
        {"pid": True},
        {"pid": None},
        {"pid": 1.5},
        {"host": 7},
        {"started": "1"},
        {"started": 1.5},
        {"more": 1},
    ],
)
def test_a_note_that_names_no_process_is_of_one_that_starts(tmp_path: Path, other: int, values: dict[str, Any]):
    assert owner_of(note(tmp_path, other, **values)) == Owner(None, HOST, None)
    check_free(tmp_path)  # its owner decides in the end


def test_where_the_kernel_does_not_tell_a_process_is_known_by_its_number(
    tmp_path: Path, other: int, monkeypatch: pytest.MonkeyPatch
):
    note(tmp_path, other, started=None)
    assert owner_of(tmp_path) is None
    monkeypatch.setattr(owner, "Path", lambda *_: tmp_path / "no such file")
    assert owner_of(tmp_path) == Owner(other, HOST, None)
    (tmp_path / LOCK).write_text(json.dumps({"pid": other, "host": HOST, "started": 1}))
    assert owner_of(tmp_path) == Owner(other, HOST, 1)


def test_a_process_that_has_ended_owns_nothing_before_its_parent_asks(tmp_path: Path):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    try:
        assert owner_of(note(tmp_path, child)) is None
    finally:
        os.waitpid(child, 0)


def test_a_folder_is_free_for_its_owner_and_for_those_elsewhere(tmp_path: Path, other: int, own: Owner):
    check_free(tmp_path)
    for values in (own._asdict(), {"host": "elsewhere"}, {"pid": NO_PROCESS}):
        check_free(note(tmp_path, other, **values))
    with pytest.raises(InputError, match=rf"is in use by process {other}; stop {tmp_path.name}"):
        check_free(note(tmp_path, other), lambda folder: f"stop {folder.name}")


def test_a_locked_folder_is_refused_and_its_owner_named(tmp_path: Path, other: int):
    """The kernel gives the lock to one open file, also within one process."""
    with owned(tmp_path), pytest.raises(InputError, match=rf"is in use by process {os.getpid()}; wait for its end"):
        with owned(tmp_path):
            pytest.fail("two blocks own the folder")
    handle = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        note(tmp_path, other, pid=NO_PROCESS)
        with pytest.raises(InputError, match=r"is in use by process \(starting\)"), owned(tmp_path):
            pytest.fail("another process holds the lock")
    finally:
        os.close(handle)


def test_a_lock_that_its_owner_has_just_removed_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, removed = fcntl.flock, list[int]()

    def flock(handle: int, how: int) -> None:
        real(handle, how)
        if not removed:
            removed.append(handle)
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with owned(tmp_path):
        assert (tmp_path / LOCK).is_file()
        with pytest.raises(InputError, match="is in use by"), owned(tmp_path):
            pytest.fail("the lock was on a file that is gone")


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot lock."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("lockless")
def test_where_no_lock_exists_the_note_decides(tmp_path: Path, other: int):
    with owned(tmp_path):
        pass
    for pid in (NO_PROCESS, 0):
        with owned(note(tmp_path, other, pid=pid)):
            pass
    note(tmp_path, other)
    with pytest.raises(InputError, match=f"is in use by process {other}"), owned(tmp_path):
        pytest.fail("another process has written its note")


def test_another_error_of_the_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def flock(*_: Any) -> None:
        raise OSError(errno.EIO, "damaged")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="damaged"), owned(tmp_path):
        pytest.fail("the lock failed")
