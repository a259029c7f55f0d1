"""A chained log gives back what was written, or refuses: no change of a byte and no lost line passes."""

import errno
import math
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disks import Disk
from fftmoe.errors import InputError, OutputError
from fftmoe.store import chained_log
from fftmoe.store.chained_log import ChainedLog

CELLS = st.integers() | st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.dictionaries(st.sampled_from(["a", "b", "why"]), CELLS, max_size=3)


def log_in(folder: Path) -> ChainedLog:
    """As another process would see it."""
    return ChainedLog(folder / "ledger.jsonl", "the ledger")


def write(folder: Path, *entries: dict[str, Any], durable: bool = True) -> ChainedLog:
    log = log_in(folder)
    for values in entries:
        with log.locked():
            log.append(values, durable)
    return log


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """A log of five lines, the last two not forced to the disk."""
    log_in(tmp_path).begin()
    write(tmp_path, {"a": 1}, {"b": "two\nlines"}, {"a": 3})
    write(tmp_path, {"b": "ü"}, {"a": 5}, durable=False)
    return tmp_path


def values_in(folder: Path) -> list[Any]:
    return [entry.get("a", entry.get("b")) for entry in log_in(folder).read()]


@given(entries=st.lists(st.tuples(VALUES, st.booleans()), max_size=7))
@settings(max_examples=10)
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[dict[str, Any], bool]]):
    folder = tmp_path_factory.mktemp("log")
    log = log_in(folder)
    log.begin()
    for values, durable in entries:
        with log.locked():
            log.append(values, durable)
    expected = [{"number": place, **values} for place, (values, _) in enumerate(entries, start=1)]
    for found in (log.read(), log_in(folder).read()):
        assert [{k: v for k, v in entry.items() if k != "previous"} for entry in found] == expected


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("durable", [True, False])
def test_what_could_not_be_read_is_not_written(five: Path, value: float, durable: bool):
    """A line is never taken back, so one that `read` refuses would end the log for ever."""
    log, before = log_in(five), values_in(five)
    with log.locked(), pytest.raises(ValueError, match="not JSON compliant"):
        log.append({"a": {"epsilon": value}}, durable)
    assert values_in(five) == before
    write(five, {"a": 6})
    assert values_in(five) == [*before, 6]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three lines, to be copied."""
    folder = tmp_path_factory.mktemp("log")
    log_in(folder).begin()
    write(folder, {"a": 1}, {"b": "two"}, {"a": 3})
    return folder


@given(data=st.data())
@settings(max_examples=200)
def test_every_changed_byte_is_noticed(three: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("changed")
    for path in three.iterdir():
        shutil.copy(path, folder)
    path = folder / data.draw(st.sampled_from(["ledger.jsonl", "ledger.head"]))
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    blank = whole[place] in b" \n" and changed in b" \t\n\r"
    whole[place] = changed
    path.write_bytes(whole)
    if blank and path.suffix == ".head":  # the blanks of the head mean nothing
        assert len(log_in(folder).read()) == 3
    else:
        with pytest.raises(InputError, match="damaged"):
            log_in(folder).read()


LINES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "the first is lost": lambda lines: lines[1:],
    "one in the middle is lost": lambda lines: [lines[0], *lines[2:]],
    "the last is lost": lambda lines: lines[:-1],
    "all are lost": lambda lines: [],
    "the last is cut": lambda lines: [*lines[:-1], lines[-1][:-9]],
    "the last line feed is lost": lambda lines: [*lines[:-1], lines[-1][:-1]],
    "two are exchanged": lambda lines: [lines[1], lines[0], lines[2]],
    "one is there twice": lambda lines: [*lines, lines[-1]],
    "a foreign one follows": lambda lines: [*lines, b'{"number":4,"previous":"0"}\n'],
    "garbage follows": lambda lines: [*lines, b"\x00\x01\n"],
}


@pytest.mark.parametrize("kind", LINES)
def test_lost_and_foreign_lines_are_noticed(tmp_path: Path, kind: str):
    log_in(tmp_path).begin()
    log = write(tmp_path, {"a": 1}, {"a": 2}, {"a": 3})
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(LINES[kind](path.read_bytes().splitlines(keepends=True))))
    for reader in (log, log_in(tmp_path)):  # the process that wrote it, and another one
        with pytest.raises(InputError, match=r"damaged.*restore"):
            reader.read()
        with reader.locked(), pytest.raises(InputError, match="damaged"):
            reader.append({"a": 4}, durable=True)


@pytest.mark.parametrize("lost", ["ledger.jsonl", "ledger.head"])
@pytest.mark.parametrize("put", [None, b"", b"{}", "folder", "pipe"])
def test_a_lost_file_is_noticed_and_never_begun_again(five: Path, lost: str, put: Any):
    log = log_in(five)
    log.read()
    (five / lost).unlink()
    if put == "folder":
        (five / lost).mkdir()
    elif put == "pipe":
        os.mkfifo(five / lost)
    elif put is not None:
        (five / lost).write_bytes(put)
    for reader in (log, log_in(five)):
        with pytest.raises(InputError, match="damaged"):
            reader.read()
        with pytest.raises(InputError, match="exists"):
            reader.begin()


def test_an_endless_log_is_not_read(five: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chained_log, "MOST_LOG_BYTES", 300)
    with pytest.raises(InputError, match="more than 300 bytes"):
        log_in(five).read()


def test_a_line_that_a_killed_process_left_unfinished_is_dropped(five: Path):
    with (five / "ledger.jsonl").open("ab") as file:
        file.write(b'{"number":6,"a":6,"prev')
    assert values_in(five) == [1, "two\nlines", 3, "ü", 5]
    write(five, {"a": 7})
    assert values_in(five) == [1, "two\nlines", 3, "ü", 5, 7]


def test_lines_that_no_head_names_yet_are_kept(five: Path):
    """A process may die after the lines are on the disk and before the head is."""
    head = (five / "ledger.head").read_bytes()
    assert b'"lines": 3' in head
    write(five, {"a": 6})
    (five / "ledger.head").write_bytes(head)
    assert values_in(five) == [1, "two\nlines", 3, "ü", 5, 6]


def test_a_full_disk_leaves_the_log_as_it_was(five: Path, monkeypatch: pytest.MonkeyPatch):
    log, before = log_in(five), (five / "ledger.jsonl").read_bytes()
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, place: pwrite(handle, data[:9], place))
    with log.locked(), pytest.raises(OutputError, match="No space left"):
        log.append({"a": 6}, durable=True)
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert (five / "ledger.jsonl").read_bytes() == before

    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with log.locked(), pytest.raises(OutputError, match="Input/output error"):
            log.append({"a": 6}, durable=True)
    assert (five / "ledger.jsonl").read_bytes() == before
    write(five, {"a": 6})
    assert values_in(five) == [1, "two\nlines", 3, "ü", 5, 6]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_log_that_could_not_be_begun_is_begun_when_there_is_space(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
):
    """Half a log would pass for a damaged one."""
    log = log_in(tmp_path)
    with monkeypatch.context() as patch:
        Disk(patch).fail(step, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OutputError, match="No space left"):
            log.begin()
    assert not list(tmp_path.iterdir())
    log.begin()
    assert log.read() == []


def test_a_durable_entry_is_on_the_disk_before_append_returns(five: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[tuple[str, bytes]] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, (five / "ledger.head").read_bytes()))
        fsync(handle)

    before = (five / "ledger.head").read_bytes()
    monkeypatch.setattr(os, "fsync", note)
    write(five, {"a": 6}, durable=False)
    assert synced == []
    write(five, {"a": 7})
    assert synced == [("ledger.jsonl", before)]  # a head never names lines that could be lost
    assert b'"lines": 7' in (five / "ledger.head").read_bytes()


def test_several_writers_append_to_one_log(tmp_path: Path):
    """Each opens the files for itself, as processes do."""
    log_in(tmp_path).begin()

    def append(own: ChainedLog) -> None:
        for i in range(11):
            with own.locked():
                own.append({"a": i}, durable=i % 5 == 0)

    logs = [log_in(tmp_path) for _ in range(3)]
    with ThreadPoolExecutor(len(logs)) as pool:
        list(pool.map(append, logs))
    assert [len(log.read()) for log in (*logs, log_in(tmp_path))] == [33] * 4


def test_a_new_log_belongs_to_its_owner_alone(tmp_path: Path):
    log_in(tmp_path).begin()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    with pytest.raises(InputError, match="exists"):
        log_in(tmp_path).begin()
    shutil.rmtree(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        log_in(tmp_path).begin()


def test_a_log_holds_every_head_that_it_had_and_no_other(tmp_path: Path):
    """Whoever kept a copy of the head can tell an older or a foreign log from this one."""
    heads: dict[str, list[bytes]] = {}
    for name in ("own", "foreign"):
        (tmp_path / name).mkdir()
        log_in(tmp_path / name).begin()
        heads[name] = [(tmp_path / name / "ledger.head").read_bytes()]
        for number in range(3):
            write(tmp_path / name, {"a": f"{name} {number}"})
            heads[name].append((tmp_path / name / "ledger.head").read_bytes())
    log = log_in(tmp_path / "own")
    assert [log.holds(head) for head in heads["own"]] == [True] * 4
    assert [log.holds(head) for head in heads["foreign"]] == [True, False, False, False]  # the first has no lines
    older = log_in(tmp_path / "older")
    (tmp_path / "older").mkdir()
    older.begin()
    assert [older.holds(head) for head in heads["own"]] == [True, False, False, False]
    write(tmp_path / "own", {"a": 4})
    assert log.holds(heads["own"][3])
    with pytest.raises(ValueError, match="its head is"):
        log.holds(b"{}")
