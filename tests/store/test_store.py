"""The run folder: files are whole or absent, and a folder with other files is refused."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.adapter import MoeAdapterConfig
from fftmoe.backbones import attach_adapter, load_backbone
from fftmoe.errors import InputError, OutputError
from fftmoe.records import ServerState
from fftmoe.rng import generator
from fftmoe.store import (
    ClientStateFiles,
    RunFolder,
    SavedWith,
    disk_errors,
    pack_state,
    read_labels,
    read_run,
    save_adapter,
    unpack_state,
    write_atomically,
)
from fftmoe.store.client_states import GENERATIONS
from fftmoe.store.files import remove_temporaries

CONFIG = {"name": "tiny", "seed": 3}


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_run_folder_is_new_or_empty(tmp_path: Path, exists: bool):
    path = tmp_path / "deep" / "run"
    if exists:
        path.mkdir(parents=True)
    RunFolder.create(path, CONFIG, needed_bytes=0)
    assert sorted(p.name for p in path.iterdir()) == ["checkpoints", "clients", "config.yaml"]
    assert (path / "config.yaml").read_text() == "name: tiny\nseed: 3\n"


@pytest.mark.parametrize(("file", "words"), [("config.yaml", "another run"), ("thesis.txt", "other files")])
def test_a_folder_with_anything_in_it_is_refused_and_untouched(tmp_path: Path, file: str, words: str):
    (tmp_path / file).write_text("mine")
    with pytest.raises(InputError, match=f"holds {words}.*--output"):
        RunFolder.create(tmp_path, CONFIG, needed_bytes=0)
    assert everything_in(tmp_path) == {file: b"mine"}


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_in_the_way_is_refused_and_untouched(tmp_path: Path, below: str):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="--output"):
        RunFolder.create(tmp_path / "file" / below, CONFIG, needed_bytes=0)
    assert everything_in(tmp_path) == {"file": b"mine"}


def test_a_disk_with_too_little_space_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(free=70 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    path = tmp_path / "deep" / "run"
    with pytest.raises(
        InputError, match=r"70 MiB left and the run needs about 71 MiB; free some space, or name another"
    ):
        RunFolder.create(path, CONFIG, needed_bytes=7 * 2**20)
    assert asked == [tmp_path]  # the nearest folder that exists
    assert list(tmp_path.iterdir()) == []
    RunFolder.create(path, CONFIG, needed_bytes=6 * 2**20)


def test_a_write_that_the_disk_refuses_leaves_the_old_file_whole_and_nothing_else(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
):
    path = tmp_path / "latest.safetensors"
    write_atomically(path, b"old")
    with full_disk(1000), pytest.raises(OutputError, match=f"cannot write {path}: File too large; free space there"):
        write_atomically(path, b"new" * 1000)
    assert everything_in(tmp_path) == {"latest.safetensors": b"old"}


def test_a_write_that_is_interrupted_leaves_the_old_file_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert everything_in(tmp_path) == {"file": b"old"}


def test_a_write_replaces_the_whole_file(tmp_path: Path):
    path = tmp_path / "file"
    write_atomically(path, b"a longer old one")
    write_atomically(path, b"new")
    assert everything_in(tmp_path) == {"file": b"new"}


def test_an_adapter_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, backbone_folder: Path, full_disk: Callable[[int], AbstractContextManager[None]]
):
    model = attach_adapter(load_backbone(str(backbone_folder), num_labels=3), MoeAdapterConfig(expert_dim=3))
    with full_disk(9000), pytest.raises(OutputError, match=r"cannot write .*/adapter: .*File too large"):
        save_adapter(model, tmp_path / "adapter", SavedWith(["a", "b", "c"]))
    assert list(tmp_path.iterdir()) == []
    save_adapter(model, tmp_path / "adapter", SavedWith(["a", "b", "c"]))
    assert read_labels(tmp_path / "adapter") == ("a", "b", "c")


def test_a_full_device_is_reported_with_its_reason():
    with (
        pytest.raises(OutputError, match=r"cannot write /dev/full: No space left on device; free space there"),
        disk_errors(Path("/dev/full")),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x")


names = st.sampled_from(["head.weight", "blocks.1.up", "blocks.10.up", "blocks.1.up:m"])
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
groups = st.dictionaries(names, shapes, max_size=3)
preferences = st.dictionaries(
    st.integers(0, 10**6),
    st.dictionaries(st.integers(0, 99), st.lists(st.integers(0, 99), max_size=3).map(tuple), max_size=2),
    max_size=3,
)


@given(groups, groups, groups, preferences, st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_a_server_state_is_read_as_it_was_written(tensors: dict, optimizer: dict, load: dict, known: dict, round: int):
    source = generator(round)
    made = [
        {name: torch.randn(shape, generator=source, dtype=dtype) for name, shape in group.items()}
        for group, dtype in ((tensors, torch.float32), (optimizer, torch.float64), (load, torch.float64))
    ]
    state = ServerState(round, *made, preferences=known)
    back = unpack_state(pack_state(state))
    assert (back.round, back.preferences) == (state.round, state.preferences)
    for before, after in ((state.tensors, back.tensors), (state.optimizer, back.optimizer), (state.load, back.load)):
        assert set(before) == set(after)
        assert all(before[n].dtype == after[n].dtype and torch.equal(before[n], after[n]) for n in before)
    assert pack_state(back) == pack_state(state)


def test_a_server_state_is_saved_in_the_run_folder(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", CONFIG, needed_bytes=0)
    state = ServerState(2, {"head.bias": torch.tensor([1.0, 2.0])})
    folder.save_state(state)
    assert (tmp_path / "run" / "checkpoints" / "round-000002.safetensors").read_bytes() == pack_state(state)


def test_each_client_finds_its_own_state_and_no_other(tmp_path: Path):
    states = ClientStateFiles(tmp_path)
    assert states.load(7, before=2) == {}
    states.save(7, 1, {"blocks.1.router": torch.full((2, 3), 7.0)})
    states.save(1_000_007, 1, {"blocks.1.router": torch.full((2, 3), 8.0)})
    assert torch.equal(states.load(7, before=2)["blocks.1.router"], torch.full((2, 3), 7.0))
    assert torch.equal(states.load(1_000_007, before=2)["blocks.1.router"], torch.full((2, 3), 8.0))
    assert states.load(0, before=2) == {}


@given(st.data())
def test_a_repeated_round_finds_the_state_from_before_it(data: st.DataObject):
    """Compared with a client that keeps every state; the server returns by fewer rounds than states are kept."""
    with TemporaryDirectory() as folder:
        states, everything = ClientStateFiles(Path(folder)), {}
        newest = 0
        for _ in range(data.draw(st.integers(1, 11))):
            round = data.draw(st.integers(max(1, newest - GENERATIONS + 2), newest + 3))
            older = [r for r in everything if r < round]
            found = states.load(13, before=round)
            assert (float(found["x"][0]) if found else None) == (everything[max(older)] if older else None)
            for later in [r for r in everything if r >= round]:
                del everything[later]  # the rounds after it are repeated too
            everything[round] = data.draw(st.integers(0, 99))
            states.save(13, round, {"x": torch.tensor([float(everything[round])])})
            newest = max(newest, round)
        assert len(list(Path(folder).rglob("*.safetensors"))) <= GENERATIONS


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_that_was_renamed_is_not_made_again_for_a_state(tmp_path: Path, durable: bool):
    """A run whose folder was renamed went on for a while in its former place, and left a part of itself there."""
    (tmp_path / "run").mkdir()
    states = ClientStateFiles(tmp_path / "run" / "clients", durable)
    states.save(2, 1, {"a": torch.ones(3)})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(OutputError, match=f"{tmp_path / 'run'} is no folder, or is there no longer"):
        states.save(2, 2, {"a": torch.ones(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_what_a_temporary_link_leads_to_is_left_alone(tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    for name, target in {".folder.tmp": "other", ".file.tmp": "other/file", ".nothing.tmp": "nothing"}.items():
        (tmp_path / "own" / name).symlink_to(tmp_path / target)
    remove_temporaries(tmp_path / "own")
    assert list((tmp_path / "own").iterdir()) == []
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_a_client_without_a_state_leaves_no_file(tmp_path: Path):
    ClientStateFiles(tmp_path).save(3, 1, {})
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_one_line_of_json_each(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", CONFIG, needed_bytes=0)
    rows = [{"round": 0, "accuracy": None}, {"round": 1, "accuracy": 0.5}]
    for row in ({**rows[0], "accuracy": float("nan")}, rows[1]):
        folder.append_metrics(row)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_summary_is_strict_json(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run", CONFIG, needed_bytes=0)
    folder.write_summary({"accuracy": 0.5})
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"accuracy": 0.5}
    folder.write_summary({"accuracy": float("nan"), "loss": [1.0, float("inf")]})
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"accuracy": None, "loss": [1.0, None]}


def test_only_a_finished_run_is_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"is not a run folder: it has no config\.yaml"):
        read_run(tmp_path)
    folder = RunFolder.create(tmp_path / "run", CONFIG, needed_bytes=0)
    with pytest.raises(InputError, match="did not finish"):
        read_run(folder.path)
    (folder.path / "adapter").mkdir()
    (folder.path / "adapter" / "adapter_config.json").write_text("{}")
    (folder.path / "adapter" / "labels.json").write_text('{"labels": ["b", "a"]}')
    assert read_run(folder.path) == CONFIG
    assert read_labels(folder.path / "adapter") == ("b", "a")
