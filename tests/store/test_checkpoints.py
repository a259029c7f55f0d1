"""Checkpoints survive damage: each is intact or not used, and it is said."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.errors import InputError
from fftmoe.store import DamagedFileError, RunFolder, Saved
from fftmoe.store.files import sha256
from played_run import (
    ROUNDS,
    assert_was_saved,
    contents,
    copied,
    go_on,
    kept_after,
    played,
    state_after,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("whole") / "run")


def test_the_last_three_are_kept_and_the_newest_is_loaded(whole: Path):
    names = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert names == [*(f"round-{r:06d}.{kind}" for r in (3, 4, 5) for kind in ("json", "safetensors")), "rows.txt"]
    saved = RunFolder(whole).load_newest()
    assert (saved.state or state_after(0)).round == ROUNDS
    assert saved.passed_over == ()
    assert_was_saved(RunFolder(whole), saved)


# Damage


class Damage(NamedTuple):
    """Damage to one file: it is cut at `place`, or a bit of the byte at `place` is flipped."""

    file: str
    place: float  # as a fraction of the file
    bit: int | None

    def do(self, folder: Path) -> None:
        path = folder / self.file
        data = bytearray(path.read_bytes())
        place = int(self.place * len(data))
        if self.bit is None:
            del data[place:]
        else:
            data[place] ^= 1 << self.bit
        path.write_bytes(data)


def of_checkpoints(folder: Path) -> list[str]:
    """Every file from which a run continues."""
    return [name for name in contents(folder) if name != "config.yaml"]


def load_damaged(folder: Path) -> int | None:
    """The round that is loaded, which is checked to be right; None where loading is refused."""
    try:
        saved = RunFolder(folder).load_newest()
    except InputError:
        return None
    assert saved.state is not None
    assert len(saved.passed_over) == ROUNDS - saved.state.round
    assert_was_saved(RunFolder(folder), saved)
    return saved.state.round


def test_no_truncated_file_and_no_flipped_bit_is_ever_loaded(whole: Path):
    """A hundred truncations and a thousand flipped bits, anywhere in the six files of the three checkpoints."""
    source, found = random.Random(3), []
    names = [name for name in of_checkpoints(whole) if name.startswith("checkpoints/round-")]
    with copied(whole) as folder:
        for bit in [None] * 100 + [source.randrange(8) for _ in range(1000)]:
            damage = Damage(source.choice(names), source.random(), bit)
            original = (folder / damage.file).read_bytes()
            damage.do(folder)
            round = load_damaged(folder)
            assert round == (ROUNDS - 1 if f"{ROUNDS:06d}" in damage.file else ROUNDS), damage
            found.append(round)
            (folder / damage.file).write_bytes(original)
    assert min(found.count(ROUNDS), found.count(ROUNDS - 1)) > 200


@given(st.data())
def test_whatever_is_damaged_what_is_loaded_is_right(whole: Path, data: st.DataObject):
    """Several damaged files together, with rows and client states among them."""
    some = st.builds(
        Damage,
        st.sampled_from(of_checkpoints(whole)),
        st.floats(0, 1, exclude_max=True),
        st.none() | st.integers(0, 7),
    )
    with copied(whole) as folder:
        for damage in data.draw(st.lists(some, min_size=1, max_size=4, unique_by=lambda damage: damage.file)):
            damage.do(folder)
        load_damaged(folder)


def test_each_checkpoint_that_is_passed_over_is_named_with_the_reason(whole: Path):
    with copied(whole) as folder:
        Damage("checkpoints/round-000005.safetensors", 0.5, 0).do(folder)
        Damage("checkpoints/round-000004.json", 0.5, None).do(folder)
        saved = RunFolder(folder).load_newest()
        assert (saved.state or state_after(0)).round == 3
        five, four = saved.passed_over
        assert "round 5" in five
        assert "round-000005.safetensors has changed since it was written" in five
        assert "round-000004.json is not a valid manifest" in four
        (folder / "checkpoints" / "round-000003.safetensors").unlink()
        with pytest.raises(InputError, match=r"round 5: .*round 4: .*round 3: .*cannot be read: No such file"):
            RunFolder(folder).load_newest()


def test_a_damaged_client_state_makes_the_run_return_to_an_older_round_or_is_refused_by_name(whole: Path):
    """The last state of client 1 is from round 5, that of client 0 from round 4."""
    for client, newest, loaded in ((1, 5, 4), (0, 4, 3)):
        with copied(whole) as folder:
            (path,) = (folder / "clients" / f"{client:06d}").glob(f"round-{newest:06d}-*")
            path.write_bytes(b"")  # like a file whose bytes never reached the disk
            saved = RunFolder(folder).load_newest()
            assert (saved.state or state_after(0)).round == loaded
            assert all(f"client {client} saved it in round {newest}" in reason for reason in saved.passed_over)
            with pytest.raises(
                DamagedFileError, match=f"client {client} saved it in round {newest}: restore the file, or remove it"
            ):
                RunFolder(folder).client_states.load(client, before=ROUNDS + 1)
            (older,) = (folder / "clients" / f"{client:06d}").glob(f"round-{newest - 2:06d}-*")
            older.write_bytes(b"")
            with pytest.raises(InputError, match=f"client {client} saved it in round {newest - 2}"):
                RunFolder(folder).load_newest()


def test_a_file_that_was_never_a_state_is_refused_although_its_digest_is_right(whole: Path):
    with copied(whole) as folder:
        manifest = folder / "checkpoints" / "round-000005.json"
        state = (folder / "checkpoints" / "round-000005.safetensors").read_bytes()
        manifest.write_text(manifest.read_text().replace(sha256(state), sha256(b"x" * len(state))))
        (folder / "checkpoints" / "round-000005.safetensors").write_bytes(b"x" * len(state))
        manifest.with_stem("round-000004").write_text("[" * 10000)
        (kept,) = (folder / "clients" / "000002").glob("round-000003-*")
        kept.rename(kept.with_name(f"round-000003-{sha256(b'x')}.safetensors")).write_bytes(b"x")
        with pytest.raises(InputError) as refused:
            RunFolder(folder).load_newest()
        for reason in (
            r"round 5: \S*/round-000005.safetensors: it has",
            r"round 4: \S*/round-000004.json is not a valid manifest: its JSON is nested",
            r"round 3: \S* is not the state of a client: .*; client 2 saved it in round 3",
        ):
            assert re.search(reason, str(refused.value)), reason


@pytest.mark.parametrize("lost", range(ROUNDS))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line[:-5],  # cut, and joined with the next line
        lambda line: line[: len(line) // 2] + b"\n",
        lambda line: line.replace(b"0", b"7", 1),  # still JSON, with another number
        lambda line: b"\xff\xfe garbage\n" + line[1:],
        lambda line: b"",
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: b'{"round": 2, "bytes_up": 9}\n',  # a row that was never written
        lambda line: bytes([line[3] ^ 1]).join([line[:3], line[4:]]),
    ],
)
def test_a_damaged_row_costs_that_row_and_no_checkpoint(whole: Path, spoil: Callable[[bytes], bytes], lost: int):
    lines = (whole / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with copied(whole) as folder:
        (folder / "metrics.jsonl").write_bytes(b"".join([*lines[:lost], spoil(lines[lost]), *lines[lost + 1 :]]))
        saved = RunFolder(folder).load_newest()
        assert_was_saved(RunFolder(folder), saved)
        assert (saved.state or state_after(0)).round == ROUNDS
        assert saved.passed_over == ()
        assert lost in saved.rows_lost
        assert set(saved.rows_lost) <= {lost, lost + 1}
        go_on(RunFolder(folder))
        assert (folder / "metrics.jsonl").read_bytes() == b"".join(saved.lines)


def test_the_row_of_a_checkpoint_survives_the_loss_of_all_rows(whole: Path):
    for spoiled in (b"", b"\0" * 999, None):
        with copied(whole) as folder:
            (folder / "metrics.jsonl").unlink()
            if spoiled is not None:
                (folder / "metrics.jsonl").write_bytes(spoiled)
            saved = RunFolder(folder).load_newest()
            assert saved.rows == [{"round": ROUNDS, "bytes_up": 1000 * ROUNDS}]
            assert saved.rows_lost == tuple(range(ROUNDS))


def test_a_row_that_was_being_written_is_not_a_row(whole: Path):
    for end in (b'{"round": 6, "accu', b'{"round": 6, "bytes_up": 6000}', b'{"round": 6, "bytes_up": 6000}\n'):
        with copied(whole) as folder:
            with (folder / "metrics.jsonl").open("ab") as file:
                file.write(end)
            saved = RunFolder(folder).load_newest()
            assert_was_saved(RunFolder(folder), saved)
            assert saved.rows_lost == ()


@pytest.mark.parametrize("left", [b"", b"x\n" * 6, None])
def test_rows_whose_digests_are_lost_are_read_if_they_are_valid(whole: Path, left: bytes | None):
    with copied(whole) as folder:
        (folder / "checkpoints" / "rows.txt").unlink()
        if left is not None:
            (folder / "checkpoints" / "rows.txt").write_bytes(left)
        saved = RunFolder(folder).load_newest()
        assert_was_saved(RunFolder(folder), saved)
        assert saved.rows_lost == ()


def test_a_checkpoint_of_an_older_version_is_read(whole: Path):
    """Its manifest holds the digest of all rows in the place of its own row."""
    with copied(whole) as folder:
        path = folder / "checkpoints" / "round-000005.json"
        manifest = json.loads(path.read_text())
        del manifest["row"]
        path.write_text(json.dumps({**manifest, "metrics": {"bytes": 1, "sha256": "0"}}))
        assert_was_saved(RunFolder(folder), RunFolder(folder).load_newest())
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
        assert (RunFolder(folder).load_newest().state or state_after(0)).round == 4


def test_saving_a_checkpoint_does_not_read_all_rows(whole: Path, monkeypatch: pytest.MonkeyPatch):
    """What it reads does not grow with the number of rounds."""
    read = 0
    original = Path.open

    class Counting:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, size: int = -1) -> bytes:
            nonlocal read
            data = self.file.read(size)
            read += len(data)
            return data

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        file = original(path, *arguments, **named)
        return Counting(file) if path.name == "metrics.jsonl" else file

    with copied(whole) as folder:
        run = RunFolder(folder)
        for round in range(ROUNDS + 1, ROUNDS + 4):
            run.append_metrics({"round": round, "bytes_up": 1000 * round, "table": "x" * 300_000})
        monkeypatch.setattr(Path, "open", opened)
        run.save_state(state_after(ROUNDS + 3))
        assert 300_000 < read < 500_000
        assert run.load_newest().rows[-1]["round"] == ROUNDS + 3


def test_a_run_whose_checkpoints_are_gone_is_not_taken_for_a_new_run(whole: Path):
    with copied(whole) as folder:
        shutil.rmtree(folder / "checkpoints")
        with pytest.raises(InputError, match=r"none exists although metrics\.jsonl has rows of several rounds"):
            RunFolder(folder).load_newest()
        rows = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_bytes(b"".join(rows[:2]))  # the first round's row comes before its checkpoint
        assert RunFolder(folder).load_newest() == Saved()
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "round-000001.json").write_bytes(b"")
        (reason,) = RunFolder(folder).load_newest().passed_over
        assert "round-000001.json is not a valid manifest" in reason


def test_a_run_that_returned_to_an_older_round_ends_with_the_same_files(whole: Path):
    """Nothing stays of the rounds that are repeated, nor of what a killed process was writing."""
    newest, second = "checkpoints/round-000005.json", "checkpoints/round-000004.safetensors"
    for damaged in ((), (newest,), (newest, second)):
        with copied(whole) as folder:
            for file in damaged:
                Damage(file, 0.5, 3).do(folder)
            for place in ("", "checkpoints", "clients/000002"):
                (folder / place / ".x.123.tmp").write_bytes(b"half")
            (folder / ".adapter.123.new.tmp").mkdir()
            RunFolder(folder).client_states.save(2, ROUNDS + 1, kept_after(2, ROUNDS + 1))  # a round that never ended
            go_on(RunFolder(folder))
            now, then = contents(folder), contents(whole)
            assert now.keys() <= then.keys()
            assert now == {name: then[name] for name in now}
            assert set(then) - set(now) <= {name for name in then if name.startswith("clients/000002/round-000002")}
