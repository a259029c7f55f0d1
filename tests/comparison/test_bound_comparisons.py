"""The cells of a comparison are of equal data, backbone and code, and its folder holds no other comparison's page."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fftmoe.comparison import bound
from fftmoe.comparison.run import compare, write_cell
from fftmoe.errors import InputError
from fftmoe.setup import bindings
from fftmoe.setup.cells import make_grid
from fftmoe.store import owned


def short(recipe_values: dict[str, Any], place: Path) -> dict[str, Any]:
    """The tiny recipe on the data and the backbone of a folder, for one round."""
    return {
        **recipe_values,
        "data": {**recipe_values["data"], "source": str(place / "data")},
        "backbone": {"model": str(place / "model")},
        "federation": {**recipe_values["federation"], "rounds": 1, "local_steps": 1, "clients_per_round": 2},
        "evaluation": {"baselines": "off"},
    }


@pytest.fixture(scope="module")
def done(
    recipe_values: dict[str, Any], data_folder: Path, backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with data, backbone, and a finished comparison of one cell; tests change copies of it."""
    place = tmp_path_factory.mktemp("compared")
    shutil.copytree(data_folder, place / "data")
    shutil.copytree(backbone_folder, place / "model")
    compare(short(recipe_values, place), place / "out", methods=["head-only"], seeds=[0])
    return place


@pytest.fixture
def place(done: Path, tmp_path: Path) -> Path:
    """A copy, whose cells name the data and the backbone of the copy."""
    shutil.copytree(done, tmp_path / "copy")
    for path in (tmp_path / "copy" / "out").rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(done), str(tmp_path / "copy")))
    return tmp_path / "copy"


def fewer_test_rows(place: Path) -> None:
    path = place / "data" / "test.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-5]) + "\n")


def another_training_row(place: Path) -> None:
    path = place / "data" / "train.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[7][0] = "ash red"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def another_backbone(place: Path) -> None:
    path = place / "model" / "model.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if "query" in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, {"format": "pt"})


def another_tokenizer(place: Path) -> None:
    values = json.loads((place / "model" / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    (place / "model" / "tokenizer.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fewer_test_rows, "the test rows have changed \\(41 rows then, 36 now\\)"),
        (another_training_row, "the training rows have changed"),
        (another_backbone, "the backbone has changed"),
        (another_tokenizer, "the tokenizer, or how images are prepared, has changed"),
    ],
)
def test_a_finished_cell_is_not_compared_with_cells_of_other_inputs(
    recipe_values: dict[str, Any], place: Path, change: Callable[[Path], object], words: str
):
    change(place)
    before = {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    for accept_changes in (False, True):
        with pytest.raises(InputError, match=words) as refused:
            compare(
                short(recipe_values, place),
                place / "out",
                methods=["head-only", "fedit"],
                seeds=[0],
                accept_changes=accept_changes,
            )
        assert "--accept-changes" not in str(refused.value)
    assert before == {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}


def test_cells_of_another_version_are_kept_only_if_a_person_says_so(
    recipe_values: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
):
    real = bindings.versions()
    monkeypatch.setattr(bindings, "versions", lambda: {**real, "fftmoe": "9.9"})
    arguments: dict[str, Any] = {"methods": ["head-only"], "seeds": [0]}
    with pytest.raises(InputError, match=f"fftmoe {real['fftmoe']} then, 9.9 now.*--accept-changes"):
        compare(short(recipe_values, place), place / "out", **arguments)
    kept = compare(short(recipe_values, place), place / "out", **arguments, accept_changes=True)
    assert [cell.status for cell in kept.cells] == ["done"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"federation.rounds": 2}, "federation.rounds was 1 and is now 2"),
        ({"federation.learning_rate": 0.5}, "federation.learning_rate"),
        ({"data.max_length": 7}, "data.max_length was 13 and is now 7"),
    ],
)
def test_another_recipe_does_not_replace_the_page(
    recipe_values: dict[str, Any], place: Path, overrides: dict[str, Any], words: str
):
    page = (place / "out" / "comparison.html").read_bytes()
    with pytest.raises(InputError, match="holds a comparison of another recipe") as refused:
        compare(short(recipe_values, place), place / "out", methods=["head-only"], seeds=[7], overrides=overrides)
    assert words in str(refused.value)
    assert (place / "out" / "comparison.html").read_bytes() == page


def test_a_page_loses_no_cell_and_gains_some(recipe_values: dict[str, Any], place: Path):
    recipe = short(recipe_values, place)
    with pytest.raises(InputError, match=r"cells that this comparison lacks \(head-only\+one-vs-all, .*, seed 0\)"):
        compare(recipe, place / "out", methods=["head-only"], seeds=[1])
    more = compare(recipe, place / "out", methods=["head-only"], seeds=[0, 1])
    assert [cell.status for cell in more.cells] == ["done"] * 2


def test_data_that_change_while_the_comparison_runs_are_noticed(
    recipe_values: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second cell reads other rows than the first one did in the same comparison."""
    from fftmoe.comparison import run as running

    real, count = running.run, iter(range(9))

    def run(*arguments: Any, **options: Any) -> Any:
        if next(count) == 1:
            fewer_test_rows(place)
        return real(*arguments, **options)

    monkeypatch.setattr(running, "run", run)
    page = (place / "out" / "comparison.json").read_bytes()
    with pytest.raises(InputError, match="were not made of equal data: the test rows have changed"):
        compare(short(recipe_values, place), place / "out", methods=["head-only"], seeds=[0, 1, 2])
    assert (place / "out" / "comparison.json").read_bytes() == page


def test_a_folder_is_for_one_comparison_at_a_time(recipe_values: dict[str, Any], place: Path):
    with owned(place / "out"), pytest.raises(InputError, match="is in use by process"):
        compare(short(recipe_values, place), place / "out", methods=["head-only"], seeds=[0])


def test_cells_that_were_written_from_their_numbers_are_kept(recipe_values: dict[str, Any], place: Path):
    recipe = short(recipe_values, place)
    (cell,) = make_grid(recipe, {"methods": ["head-only"], "seeds": [0]}).cells
    row = {"round": 1, "bytes_up": 1, "bytes_down": 1, "client_seconds": 1.0, "accuracy": 0.5}
    summary = {"accuracy": 0.5}
    write_cell(cell, place / "out", summary, [row])
    bound.CurrentInputs().check(cell, place / "out" / "cells" / cell.path)


@pytest.mark.parametrize("content", ["", '{"accuracy": ', "[1]", '{"accuracy": NaN}', "\0"])
def test_a_damaged_cell_is_named_before_another_one_runs(
    recipe_values: dict[str, Any], place: Path, content: str, monkeypatch: pytest.MonkeyPatch
):
    (path,) = (place / "out" / "cells").rglob("summary.json")
    path.write_text(content)
    monkeypatch.setattr("fftmoe.comparison.run.run", lambda *_: pytest.fail("a cell was run"))
    with pytest.raises(InputError, match=r"summary\.json is damaged: .*name another folder with --output, or remove"):
        compare(short(recipe_values, place), place / "out", methods=["head-only"], seeds=[0, 1])
