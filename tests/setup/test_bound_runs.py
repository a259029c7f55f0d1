"""A run continues, and a finished run is used, only with what it began with; each change is refused in words."""

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup import bindings
from fftmoe.setup.run import resume, run
from fftmoe.store import RunFolder
from fftmoe.store.bindings import BINDINGS_FILE, Bindings, differences
from interrupting import Killed, interrupt, results
from shared_fixtures import Cli, Outcome, assert_refused

Spoil = Callable[[Path], object]
ROUNDS = 3


def write_place(place: Path, recipe_values: dict[str, Any], data_folder: Path, backbone_folder: Path) -> None:
    """Copy data and backbone of the tiny recipe to `place`, and write its recipe for four natural clients."""
    shutil.copytree(data_folder, place / "data")
    shutil.copytree(backbone_folder, place / "model")
    values = {
        **recipe_values,
        "partition": {"kind": "natural", "by": "author"},
        "federation": {**recipe_values["federation"], "rounds": ROUNDS, "clients_per_round": 3, "local_steps": 1},
        "evaluation": {"baselines": "off"},
        "trackers": [],
        "data": {**recipe_values["data"], "source": str(place / "data"), "max_length": 7},
        "backbone": {"model": str(place / "model")},
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(values))


@pytest.fixture(scope="module")
def places(
    recipe_values: dict[str, Any], data_folder: Path, backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder with data, backbone and a run that was interrupted after its first round, and one with a whole run."""
    made = {}
    for name in ("interrupted", "whole"):
        made[name] = place = tmp_path_factory.mktemp(name) / "place"
        place.mkdir()
        write_place(place, recipe_values, data_folder, backbone_folder)
        recipe = parse_recipe(yaml.safe_load((place / "recipe.yaml").read_text()), "here")
        with pytest.MonkeyPatch.context() as patch:
            if name == "interrupted":
                interrupt(patch, "in training", 2)
            try:
                run(recipe, place / "run")
            except Killed:
                assert name == "interrupted"
    return made


@pytest.fixture
def interrupted(places: dict[str, Path], tmp_path: Path) -> Path:
    return moved(places["interrupted"], tmp_path / "moved")


@pytest.fixture
def whole(places: dict[str, Path], tmp_path: Path) -> Path:
    return moved(places["whole"], tmp_path / "moved")


def moved(place: Path, to: Path) -> Path:
    """A copy whose run names the data and the backbone of the copy; a run may move, as long as nothing else changes."""
    shutil.copytree(place, to)
    path = to / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(place), str(to)))
    return to


def edit_rows(change: Callable[[list[list[str]]], object], split: str = "train") -> Spoil:
    """Change the rows of a table, without its header."""

    def spoil(place: Path) -> None:
        path = place / "data" / f"{split}.csv"
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        change(rows)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    return spoil


def edit_config(section: str, **values: Any) -> Spoil:
    def spoil(place: Path) -> None:
        path = place / "run" / "config.yaml"
        config = yaml.safe_load(path.read_text())
        config[section] = {**config[section], **values}
        path.write_text(yaml.safe_dump(config))

    return spoil


def edit_backbone(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(place: Path) -> None:
        path = place / "model" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return spoil


def edit_json(file: str, change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(place: Path) -> None:
        values = json.loads((place / file).read_text())
        change(values)
        (place / file).write_text(json.dumps(values))

    return spoil


def swap(items: Any, a: Any, b: Any) -> None:
    items[a], items[b] = items[b], items[a]


def another_base(tensors: dict[str, torch.Tensor]) -> None:
    """A fresh model of the same shape."""
    source = torch.Generator().manual_seed(7)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.randn(tensor.shape, generator=source) * 0.02


def one_bit(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("layer.0.attention.self.query.weight"))
    tensors[name].view(torch.int32).view(-1)[5] ^= 1


def other_label(rows: list[list[str]]) -> None:
    rows[6][1] = "green" if rows[6][1] == "red" else "red"


def other_words(values: dict[str, Any]) -> None:
    vocabulary = values["model"]["vocab"]
    swap(vocabulary, "red", "blue")


# What is changed, and words of the refusal. Rows are [text, label, author].
ACCEPTABLE: dict[str, tuple[Spoil, str]] = {
    "a word of a training text": (edit_rows(lambda rows: rows[5].__setitem__(0, "ash red")), "the training rows"),
    "a character that the model never sees": (
        edit_rows(lambda rows: rows[5].__setitem__(0, rows[5][0] + " ash" * 20 + " bay")),
        "the training rows",
    ),
    "the case of a letter": (edit_rows(lambda rows: rows[5].__setitem__(0, rows[5][0].upper())), "the training rows"),
    "the order of two training rows": (edit_rows(lambda rows: swap(rows, 0, 4)), "in another order"),
    "one more training row": (edit_rows(lambda rows: rows.append(list(rows[8]))), "113 rows then, 114 now"),
    "one training row less": (edit_rows(lambda rows: rows.pop()), "113 rows then, 112 now"),
    "a training label": (edit_rows(other_label), "the training rows"),
    "a test label": (edit_rows(other_label, "test"), "the test rows"),
    "one test row less": (edit_rows(lambda rows: rows.pop(), "test"), "41 rows then, 40 now"),
    "the column of the texts": (edit_config("data", text="author"), "data.text was"),
    "the number of rounds": (edit_config("federation", rounds=ROUNDS + 1), "federation.rounds was 3 and is now 4"),
    "the learning rate": (edit_config("federation", learning_rate=0.02), "federation.learning_rate was 0.01"),
    "one bit of the backbone": (edit_backbone(one_bit), "the backbone has changed"),
    "another backbone of the same shape": (edit_backbone(another_base), "the backbone has changed"),
    "the backbone's configuration": (
        edit_json("model/config.json", lambda values: values.update(layer_norm_eps=1e-3)),
        "the backbone has changed",
    ),
    "the tokenizer's words": (edit_json("model/tokenizer.json", other_words), "the tokenizer, or"),
}
FINAL: dict[str, tuple[Spoil, str]] = {
    "a label's name, so that classes are numbered anew": (
        lambda place: [
            edit_rows(lambda rows: [row.__setitem__(1, row[1].replace("blue", "zinc")) for row in rows], split)(place)
            for split in ("train", "test")
        ],
        "the labels are others (blue, green, red then, green, red, zinc now)",
    ),
    "the order of the labels": (
        edit_config("data", labels=["red", "green", "blue"]),
        "the labels are in another order",
    ),
    "the order of the clients": (
        edit_rows(lambda rows: [row.__setitem__(2, {"author-0": "author-9"}.get(row[2], row[2])) for row in rows]),
        "author-9 has joined, author-0 is missing",
    ),
    "one more client": (edit_rows(lambda rows: rows[5].__setitem__(2, "author-33")), "author-33 has joined"),
    "the column of the clients": (edit_config("partition", by="label"), "the clients are others"),
}


@pytest.mark.parametrize("name", [*ACCEPTABLE, *FINAL])
def test_a_run_does_not_continue_with_anything_else_than_it_began_with(cli: Cli, interrupted: Path, name: str):
    spoil, words = {**ACCEPTABLE, **FINAL}[name]
    spoil(interrupted)
    before = files_of(interrupted / "run")
    refused = cli("resume", interrupted / "run")
    assert refused.status == 2
    assert f"the run in {interrupted / 'run'} cannot continue" in refused.err
    assert words in refused.err
    assert ("--accept-changes" in refused.err) == (name in ACCEPTABLE)
    assert files_of(interrupted / "run") == before
    if name in FINAL:
        assert cli("resume", interrupted / "run", "--accept-changes").status == 2
        assert files_of(interrupted / "run") == before


@pytest.mark.parametrize("name", ["a word of a training text", "one bit of the backbone", "the number of rounds"])
def test_a_person_can_accept_a_change_and_the_summary_says_so(cli: Cli, interrupted: Path, name: str):
    spoil, words = ACCEPTABLE[name]
    spoil(interrupted)
    done = cli("resume", interrupted / "run", "--accept-changes")
    assert done.status == 0, done.err
    assert f"accepted: {words}" in done.out or f"accepted: the recipe has changed ({words}" in done.out
    (told,) = json.loads((interrupted / "run" / "summary.json").read_text())["accepted_changes"]
    assert told.startswith("after round 1: ")
    assert words in told


ARITHMETIC = {
    **{"precision": "bfloat16", "micro_batch_size": 3, "clients_per_batch": 1, "prefix_cache": "off"},
    **{"workers": None, "checkpointing": None, "prefix_cache_mib": None},  # change no number
}


@pytest.mark.parametrize("key", ARITHMETIC)
def test_other_arithmetic_is_recorded_where_it_changes_numbers(cli: Cli, interrupted: Path, key: str):
    """Nobody has to accept it: it was named for this part of the run."""
    value = {"workers": 2, "checkpointing": "true", "prefix_cache_mib": 5}.get(key, ARITHMETIC[key])
    done = cli("resume", interrupted / "run", "--set", f"engine.{key}={value}")
    assert done.status == 0, done.err
    told = json.loads((interrupted / "run" / "summary.json").read_text()).get("accepted_changes", [])
    assert len(told) == (ARITHMETIC[key] is not None)
    for words in told:
        assert words.startswith("after round 1: the numbers are computed in another way")
        assert f"{key} was" in words
        assert str(value) in words
    began = Bindings.read(interrupted / "run")
    assert began is not None
    assert began.accepted == tuple(told)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_was_moved_continues_to_the_same_bytes(interrupted: Path, places: dict[str, Path]):
    """Also with other columns beside, and with settings of the engine that say only where it computes."""
    path = interrupted / "data" / "train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line},{n}" for n, line in enumerate(lines)) + "\n")
    resume(interrupted / "run", overrides=["engine.prefix_cache=off"])
    expected = results(places["whole"] / "run")
    assert results(interrupted / "run").keys() == expected.keys()


def test_other_versions_are_refused_or_accepted(cli: Cli, interrupted: Path, monkeypatch: pytest.MonkeyPatch):
    real = bindings.versions()
    monkeypatch.setattr(bindings, "versions", lambda: {**real, "torch": "9.9"})
    refused = cli("resume", interrupted / "run")
    assert_refused(refused._replace(out=""), f"torch {real['torch']} then, 9.9 now", "--accept-changes")
    assert cli("resume", interrupted / "run", "--accept-changes").status == 0


def test_a_client_without_a_name_is_known_by_what_it_holds(recipe_values: dict[str, Any], tmp_path: Path):
    """Clients of a drawn partition have only numbers: if other examples fall to them, they are other clients."""
    then = {"population": {"clients": 7}, "division": "a"}
    (found,) = differences(then, {**then, "division": "b"})
    assert not found.acceptable
    (found,) = differences(then, {**then, "population": {"clients": 8}})
    assert "7 then, 8 now" in found.words
    assert not found.acceptable


def test_a_run_of_an_older_version_continues_with_a_warning(cli: Cli, interrupted: Path):
    (interrupted / "run" / BINDINGS_FILE).unlink()
    done = cli("resume", interrupted / "run")
    assert done.status == 0
    assert "warning:" in done.out
    assert "does not record what this run began with" in done.out
    assert Bindings.read(interrupted / "run") is not None  # from now on it is bound


@pytest.mark.parametrize("damage", [b"", b"{", b'{"format": 1}', b'{"format": 9, "values": {}, "accepted": []}', b"[]"])
def test_damaged_bindings_are_not_taken_for_missing_ones(cli: Cli, interrupted: Path, damage: bytes):
    (interrupted / "run" / BINDINGS_FILE).write_bytes(damage)
    for verb in ("resume", "evaluate"):
        refused = cli(verb, interrupted / "run", *(["--accept-changes"] if verb == "resume" else []))
        assert refused.status == 2
    assert "is damaged" in cli("resume", interrupted / "run").err


# A finished run in use


USES = {
    "evaluate": lambda cli, place: cli("evaluate", place / "run"),
    "predict": lambda cli, place: cli("predict", place / "run", "ash red"),
    "predict a client": lambda cli, place: cli("predict", place / "run", "ash red", "--client", 1),
    "export": lambda cli, place: cli("export", place / "run", "--to", "peft", "--output", place / "out"),
    "export personal": lambda cli, place: cli(
        "export", place / "run", "--to", "personal", "--client", 1, "--output", place / "out"
    ),
}
WEIGHTS = ("one bit of the backbone", "another backbone of the same shape")
MODEL = (*WEIGHTS, "the backbone's configuration", "the tokenizer's words")
# Which changes matter to which use.
MATTERS = {
    "evaluate": (*MODEL, "a test label", "one test row less"),
    "predict": MODEL,
    "predict a client": (*MODEL, "a training label", "one more client", "the order of the clients"),
    "export": MODEL,
    "export personal": (*MODEL, "one more training row"),
}


@pytest.mark.parametrize(("use", "name"), [(use, name) for use, names in MATTERS.items() for name in names])
def test_a_finished_run_is_used_only_with_what_it_was_made_of(cli: Cli, whole: Path, use: str, name: str):
    spoil, words = {**ACCEPTABLE, **FINAL}[name]
    spoil(whole)
    refused: Outcome = USES[use](cli, whole)
    assert_refused(refused, "was trained on other weights" if name in WEIGHTS else words)
    assert not (whole / "out").exists()
    # An adapter means nothing on other weights, so nobody can accept those.
    assert ("--accept-changes" in refused.err) == (name in ACCEPTABLE and name not in WEIGHTS)


@pytest.mark.parametrize("use", USES)
def test_a_finished_run_is_used_after_changes_that_do_not_matter_to_it(cli: Cli, whole: Path, use: str):
    """Newer versions, and rows that this use does not read."""
    assert USES[use](cli, whole).status == 0
    shutil.rmtree(whole / "out", ignore_errors=True)
    path = whole / "run" / BINDINGS_FILE
    values = json.loads(path.read_text())
    values["values"]["versions"]["torch"] = "0.1"
    path.write_text(json.dumps(values))
    if use in ("predict", "export"):
        shutil.rmtree(whole / "data")
    assert USES[use](cli, whole).status == 0


def test_labels_of_another_order_are_not_those_of_the_head(cli: Cli, whole: Path):
    edit_json("run/adapter/labels.json", lambda values: swap(values["labels"], 0, 1))(whole)
    for use in USES.values():
        assert_refused(use(cli, whole), "label")


def test_a_change_of_the_test_rows_can_be_accepted_or_avoided(cli: Cli, whole: Path):
    ACCEPTABLE["one test row less"][0](whole)
    assert json.loads(cli("evaluate", whole / "run", "--accept-changes").out)["num_examples"] == 40
    assert json.loads(cli("evaluate", whole / "run", "--data", whole / "data").out)["num_examples"] == 40


def test_a_checkpoint_that_does_not_fit_the_recipe_is_refused(interrupted: Path):
    """As it would be if it came from another run; its own digests are right."""

    folder = RunFolder(interrupted / "run")
    state = folder.load_newest().state
    assert state is not None
    dropped = {name: tensor for name, tensor in state.tensors.items() if name != min(state.tensors)}
    for tensors in (
        dropped,
        {**state.tensors, "blocks.9.up": torch.zeros(2)},
        {**state.tensors, min(state.tensors): torch.zeros(3, 3, 3)},
        {**state.tensors, min(state.tensors): state.tensors[min(state.tensors)].double()},
    ):
        folder.save_state(dataclasses.replace(state, tensors=tensors))
        with pytest.raises(InputError, match="does not fit its recipe"):
            resume(interrupted / "run")
