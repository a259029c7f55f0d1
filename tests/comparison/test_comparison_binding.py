"""What a comparison compares with the folder and the cells that it finds, without a run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fftmoe.comparison import bound
from fftmoe.errors import InputError
from fftmoe.store import Bindings

VALUES = {"training rows": {"rows": 5, "digest": "a"}, "backbone": "b", "versions": {"fftmoe": "1"}}


def cell(seed: int, variant: str = "method", **config: Any) -> Any:
    """A cell; its data are those that its settings name."""
    return SimpleNamespace(
        name=f"{variant}, iid, seed {seed}",
        variant=variant,
        partition="iid",
        seed=seed,
        config={"data": {"source": "here"}, "backbone": {}, "partition": {"kind": "iid"}, **config},
        recipe=SimpleNamespace(differential=False),
    )


def grid(*cells: Any, rounds: int = 2) -> Any:
    return SimpleNamespace(base={"federation": {"rounds": rounds}}, cells=cells)


@pytest.fixture(autouse=True)
def recipes_are_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "bound_recipe", lambda recipe: recipe)


def write_page(folder: Path, *cells: Any, status: str = "done") -> None:
    places = [{"variant": c.variant, "partition": c.partition, "seed": c.seed, "status": status} for c in cells]
    (folder / "comparison.json").write_text(json.dumps({"cells": places}))


def test_a_folder_is_bound_to_the_first_recipe(tmp_path: Path):
    bound.bind_folder(grid(cell(0)), tmp_path)
    bound.bind_folder(grid(cell(0), cell(1)), tmp_path)
    with pytest.raises(InputError, match=r"holds a comparison of another recipe.*was 2 and is now 3.*with --output"):
        bound.bind_folder(grid(cell(0), rounds=3), tmp_path)
    found = Bindings.read(tmp_path)
    assert found is not None
    assert found.values == {"recipe": {"federation": {"rounds": 2}}}


@pytest.mark.parametrize(("lost", "more"), [(1, ""), (2, ""), (3, ""), (4, ", and 1 more"), (6, ", and 3 more")])
def test_the_first_cells_that_a_page_would_lose_are_named(tmp_path: Path, lost: int, more: str):
    write_page(tmp_path, *(cell(seed) for seed in range(lost + 1)))
    with pytest.raises(InputError) as refused:
        bound.bind_folder(grid(cell(lost)), tmp_path)
    names = "; ".join(f"method, iid, seed {seed}" for seed in range(min(lost, 3)))
    assert f"holds cells that this comparison lacks ({names}{more}); ask for them too" in str(refused.value)
    assert Bindings.read(tmp_path) is None


def test_a_page_loses_no_cell_that_was_not_done(tmp_path: Path):
    write_page(tmp_path, cell(0), cell(1), status="failed")
    bound.bind_folder(grid(cell(0)), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"cells": 3}', '{"cells": [{"status": "done"}]}'])
def test_a_page_that_cannot_be_read_is_named(tmp_path: Path, content: str):
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(InputError, match=r"cannot read .*comparison\.json: .*; remove it"):
        bound.bind_folder(grid(cell(0)), tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes whose inputs were read, all of which are `VALUES`."""
    asked: list[Any] = []
    monkeypatch.setattr(bound, "inputs_of", lambda recipe, _: asked.append(recipe) or VALUES)
    return asked


def finished(folder: Path, **values: Any) -> Path:
    """The folder of a finished cell with these inputs."""
    folder.mkdir(exist_ok=True)
    Bindings({**VALUES, **{name.replace("_", " "): value for name, value in values.items()}}).write(folder)
    return folder


def test_a_finished_cell_is_kept_while_its_inputs_are_equal(tmp_path: Path, read: list[Any]):
    inputs = bound.CurrentInputs()
    (tmp_path / "older").mkdir()
    inputs.check(cell(0), tmp_path / "older")
    assert not read
    inputs.check(cell(0), finished(tmp_path / "equal"))
    other = finished(tmp_path / "other", training_rows={"rows": 4, "digest": "a"})
    for accept_changes in (False, True):
        with pytest.raises(InputError, match="the training rows have changed") as refused:
            bound.CurrentInputs(accept_changes).check(cell(0), other)
        assert "--accept-changes" not in str(refused.value)


def test_only_other_versions_can_be_accepted(tmp_path: Path, read: list[Any]):
    older = finished(tmp_path / "older", versions={"fftmoe": "0"})
    with pytest.raises(InputError, match=r"fftmoe 0 then, 1 now.*--accept-changes"):
        bound.CurrentInputs().check(cell(0), older)
    bound.CurrentInputs(accept_changes=True).check(cell(0), older)


def test_each_data_set_is_read_once(tmp_path: Path, read: list[Any]):
    inputs, folder = bound.CurrentInputs(), finished(tmp_path / "cell")
    for seed in range(3):
        inputs.check(cell(seed), folder)
    assert len(read) == 1
    inputs.check(cell(0, data={"source": "there"}), folder)
    inputs.check(cell(0, partition={"by": "clinic"}), folder)
    assert len(read) == 3


def test_cells_of_one_data_set_have_read_the_same(tmp_path: Path):
    equal, other = finished(tmp_path / "equal"), finished(tmp_path / "other", backbone="c")
    (tmp_path / "older").mkdir()
    older = (cell(7), tmp_path / "older")
    bound.check_equal_inputs([older, (cell(0), equal), older, (cell(1), equal)])
    bound.check_equal_inputs([(cell(0), equal), (cell(1, data={"source": "there"}), other)])
    with pytest.raises(
        InputError, match=r"'method, iid, seed 0' and 'method, iid, seed 2' were not made of equal data"
    ):
        bound.check_equal_inputs([(cell(0), equal), (cell(1), equal), (cell(2), other)])
