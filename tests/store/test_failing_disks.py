"""A disk that refuses a call, and one that loses what was not forced to it: at most one round is lost."""

import errno
import itertools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from disks import Disk, PowerCut
from fftmoe.errors import OutputError
from fftmoe.store import RunFolder, files
from played_run import ROUNDS, assert_was_saved, contents, copied, go_on, play, played, state_after


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def disk() -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        yield disk
        disk.forget()


@pytest.mark.parametrize("number", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_whichever_call_a_disk_refuses_nothing_is_lost_and_the_run_continues(whole: Path, disk: Disk, number: int):
    """Starting from a run that was killed in round 4: return to round 3 in its folder, and play two rounds."""
    step = 0
    for step in itertools.count(1):
        with copied(whole) as folder:
            (folder / "checkpoints" / "round-000005.json").unlink()
            (folder / "checkpoints" / "round-000004.json").write_bytes(b"")
            done = [3]
            disk.fail(step, OSError(number, os.strerror(number)))
            try:
                go_on(RunFolder(folder), done.append)
            except OutputError as error:
                assert re.search(f"cannot write {folder}.*: {os.strerror(number)}; free space", str(error))  # noqa: PT017
            else:
                break
            saved = RunFolder(folder).load_newest()
            assert_was_saved(RunFolder(folder), saved)
            assert (saved.state or state_after(0)).round >= done[-1]
            go_on(RunFolder(folder))
            assert contents(folder) == contents(whole)
            disk.forget()
    assert step > 50


@pytest.mark.parametrize(("every", "seed"), [(1, None), (3, 1)])
def test_whenever_the_power_fails_at_most_one_round_is_lost(
    whole: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, every: int, seed: int | None
):
    """The same holds where a disk happens to keep some of the writes that were not forced to it."""
    monkeypatch.setattr(
        files, "in_parallel", lambda work, paths: [work(path) for path in paths]
    )  # a fixed order of calls
    done, step = [0], 0
    for step in itertools.count(1, every):
        with TemporaryDirectory() as place:
            chance, before, after = random.Random(f"{seed} {step}"), Path(place) / "before", Path(place) / "after"
            before.mkdir()
            disk.fail(step, PowerCut())
            done = [0]
            try:
                play(RunFolder.create(before / "run", {"name": "tiny"}, needed_bytes=0), 1, done.append)
            except PowerCut:
                disk.survive(before, after, None if seed is None else chance)
            else:
                break
            finally:
                disk.forget()
            left = RunFolder(after / "run")
            if (left.path / "config.yaml").exists():
                saved = left.load_newest()
                assert_was_saved(left, saved)
                assert (saved.state.round if saved.state else 0) >= done[-1]
                go_on(left)
                assert contents(left.path) == contents(whole)
            else:
                assert done == [0]
            disk.forget()
    assert done[-1] == ROUNDS
    assert step > 100
