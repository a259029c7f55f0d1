"""The rows of a run: what is damaged costs its own line, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.store import rows as rows_module
from fftmoe.store.rows import RowFile, parse_row

LONG = "x" * 997


@pytest.fixture
def file(tmp_path: Path) -> RowFile:
    """Rows of the rounds 0 to 4."""
    (tmp_path / "checkpoints").mkdir()
    made = RowFile(tmp_path)
    for round in range(5):
        made.append(row(round))
    return made


def row(round: int) -> dict[str, Any]:
    return {"round": round, "accuracy": round / 7}


def rounds(file: RowFile) -> list[int]:
    return [found.values["round"] for found in file.read()]


def change(path: Path, place: int, line: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = line
    path.write_bytes(b"".join(lines))


def test_rows_are_read_as_they_were_written(file: RowFile):
    assert [found.values for found in file.read()] == [row(round) for round in range(5)]
    assert b"".join(found.line for found in file.read()) == file.path.read_bytes()
    assert file.files() == [file.path, file.digests]


def test_a_run_without_rows_has_none(tmp_path: Path):
    assert RowFile(tmp_path).read() == []
    assert RowFile(tmp_path).last() == b""
    assert RowFile(tmp_path).files() == []


def test_a_new_file_is_for_its_owner_only(file: RowFile):
    assert {path.stat().st_mode & 0o777 for path in file.files()} == {0o600}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize(
    "line",
    [b"\n", b'{"round": \n', b"\xff\n", b'{"round": 3, "accuracy": 0.5}\n', b"[" * 100_000 + b"\n"],
    ids=["empty", "cut", "no text", "another row", "deep"],
)
def test_a_line_that_is_not_the_written_one_is_left_out(file: RowFile, place: int, line: bytes):
    """Also one that is valid: its digest stands at its place, and says that it is another."""
    change(file.path, place, line)
    assert rounds(file) == [round for round in range(5) if round != place]


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_digest_that_is_damaged_costs_no_line(file: RowFile, place: int):
    """A line without a digest is believed if it is a row."""
    change(file.digests, place, b"no digest\n")
    assert rounds(file) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kept", [0, 3])
def test_rows_without_digests_are_those_of_an_older_version(file: RowFile, kept: int):
    digests = file.digests.read_bytes().splitlines(keepends=True)
    file.digests.write_bytes(b"".join(digests[:kept]))
    assert rounds(file) == [0, 1, 2, 3, 4]
    file.digests.unlink()
    assert rounds(file) == [0, 1, 2, 3, 4]


def test_of_two_rows_of_a_round_the_last_one_that_was_written_counts(file: RowFile):
    file.append({"round": 3, "accuracy": 0.5})
    with file.path.open("ab") as opened:  # by nobody knows whom
        opened.write(b'{"round": 3, "accuracy": 0.9}\n')
    assert rounds(file) == [0, 1, 2, 3, 4]
    assert file.read()[3].values["accuracy"] == 0.5


def test_of_two_rows_without_a_digest_the_first_one_counts(file: RowFile):
    with file.path.open("ab") as opened:
        opened.write(b'{"round": 5, "accuracy": 0.1}\n{"round": 5, "accuracy": 0.2}\n')
    assert file.read()[5].values["accuracy"] == 0.1


@pytest.mark.parametrize(
    "text", ["3", "[]", "null", "{}", '{"round": "3"}', '{"round": true}', '{"round": 3.0}', '{"round": -1}']
)
def test_a_line_without_the_number_of_a_round_is_no_row(text: str):
    assert parse_row(text.encode() + b"\n") is None


def test_a_line_is_a_row_when_it_is_complete():
    assert parse_row(b'{"round": 0}') is None
    found = parse_row(b'{"round": 0}\n')
    assert found is not None
    assert found.values == {"round": 0}


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    at_once=st.integers(1, 90),
    complete=st.booleans(),
)
def test_the_last_line_is_found_from_the_end(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], at_once: int, complete: bool
):
    """However the lines lie in the pieces that are read."""
    lines = [b"y" * length + b"\n" for length in lengths]
    if lines and not complete:
        lines[-1] = lines[-1].rstrip(b"\n")
    file = RowFile(tmp_path_factory.mktemp("rows"))
    file.path.write_bytes(b"".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "BYTES_AT_ONCE", at_once)
        found = file.last()
    whole = b"".join(lines).splitlines(keepends=True)
    assert found == (whole[-1] if whole else b"")


def test_the_rest_of_a_long_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, read = RowFile(tmp_path), list[int]()
    file.path.write_bytes(b"".join(json.dumps({"round": n, "text": LONG}).encode() + b"\n" for n in range(200)))
    real = Path.open

    def watched(path: Path, *arguments: Any) -> Any:
        opened = real(path, *arguments)
        take = opened.read
        opened = _Watched(opened, lambda size: read.append(size) or take(size))
        return opened

    monkeypatch.setattr(Path, "open", watched)
    assert json.loads(file.last())["round"] == 199
    assert sum(read) <= rows_module.BYTES_AT_ONCE


class _Watched:
    """A file whose `read` is another function."""

    def __init__(self, file: Any, read: Any) -> None:
        self._file, self.read, self.seek = file, read, file.seek

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_the_file_is_replaced_with_its_digests(file: RowFile):
    kept = [found.line for found in file.read()[:2]]
    file.replace(kept)
    assert rounds(file) == [0, 1]
    change(file.path, 1, b'{"round": 1, "accuracy": 0.9}\n')
    assert rounds(file) == [0]
