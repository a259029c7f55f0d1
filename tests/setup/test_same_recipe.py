"""What a recipe leaves out means the same wherever a person gives it: as a file, as values, in JSON, or to compare."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fftmoe
from fftmoe.config import Recipe, load_recipe, parse_recipe
from fftmoe.setup import run as runs
from fftmoe.setup.cells import make_grid
from fftmoe.setup.deployment import recipe_from_text
from shared_fixtures import Cli

SOURCE = Path(__file__).parents[2] / "src" / "fftmoe"
PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "a source": lambda folder: {"data": {"source": str(folder)}},
    "a method": lambda folder: {"data": {"source": str(folder)}, "method": "fedit", "seed": 5},
    "a section in part": lambda folder: {
        "data": {"source": str(folder), "text": "text", "label": "label"},
        "federation": {"rounds": 3},
        "adapter": {"num_experts": 7},
    },
    "the paper's adapter": lambda folder: {"data": {"source": str(folder)}, "adapter": "paper"},
    "privacy": lambda folder: {
        "data": {"source": str(folder), "text": "text", "label": "label", "labels": ["blue", "green", "red"]},
        "privacy": {"epsilon": 8.0, "delta": 0.001, "clip_norm": 1.0},
        "partition": {"num_clients": 11},
    },
}


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes of the runs that would begin."""
    seen: list[Recipe] = []

    def stop(recipe: Recipe, *_: Any, **__: Any) -> None:
        seen.append(recipe)
        raise fftmoe.RunError("stopped for a test; nothing")

    monkeypatch.setattr(runs, "run", stop)
    return seen


@pytest.mark.parametrize("name", PARTS)
def test_values_mean_what_the_same_file_means(
    cli: Cli, begun: list[Recipe], data_folder: Path, tmp_path: Path, name: str
):
    values = {"name": "mine", **PARTS[name](data_folder)}
    before = json.dumps(values)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    read = load_recipe(tmp_path / "mine.yaml")
    assert load_recipe(values) == read
    assert cli("run", tmp_path / "mine.yaml").status == 1
    for given in (values, str(tmp_path / "mine.yaml")):
        with pytest.raises(fftmoe.RunError, match="stopped for a test"):
            fftmoe.run(given)
    assert begun == [read, read, read]
    assert json.dumps(values) == before
    grids = [make_grid(given, {}) for given in (values, tmp_path / "mine.yaml")]
    assert [cell.recipe for cell in grids[0].cells] == [cell.recipe for cell in grids[1].cells]
    assert recipe_from_text(json.dumps(values)) == recipe_from_text(str(tmp_path / "mine.yaml"))
    assert load_recipe(values, ["federation.rounds=7"]).federation.rounds == 7


def test_values_that_are_no_recipe_are_refused_as_a_file_is(data_folder: Path):
    with pytest.raises(fftmoe.InputError, match=r"unknown key 'federation.round'; did you mean 'rounds'"):
        load_recipe({"data": {"source": str(data_folder)}, "federation": {"round": 3}})
    with pytest.raises(fftmoe.InputError, match="recipe values: "):
        fftmoe.run({"data": {"source": str(data_folder)}, "seed": "x"})


NEUTRAL = {
    "config/read.py",  # which fills in first
    "setup/finished.py",  # of a run folder
    "setup/run.py",
    "setup/cells.py",
    "setup/bindings.py",
    "setup/simulation.py",  # of this very run
    "setup/site.py",  # what a server has sent
    "setup/site_request.py",
}
"""The modules that read whole recipes, in which a key that is missing has the value from before it was there."""


def test_no_other_module_reads_what_a_person_writes_without_the_defaults():
    found = set()
    for path in sorted(SOURCE.rglob("*.py")):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        names = {ast.unparse(call.func).split(".")[-1] for call in calls}
        if names & {"parse_recipe", "check_sections"} or "Recipe.model_validate" in path.read_text():
            found.add(str(path.relative_to(SOURCE)))
    assert found == NEUTRAL


def test_a_whole_recipe_is_completed_to_itself(data_folder: Path):
    """So that values which were read back from a run folder stay as they are."""
    recipe = load_recipe({"data": {"source": str(data_folder)}})
    values = recipe.model_dump(mode="json")
    assert parse_recipe(values, "test") == recipe
    assert load_recipe(values) == recipe
