"""Recipes are read from files, by path or by the name of a shipped one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import Recipe, find_recipe, load_recipe, parse_recipe, recipe_folder
from fftmoe.errors import InputError

SHIPPED = sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def test_the_quickstart_is_shipped():
    assert "quickstart" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_parses_and_says_how_to_run_it(name: str):
    recipe = load_recipe(name, may_read=False)
    assert recipe.name == name
    assert find_recipe(name).read_text().startswith(f"# fftmoe run{'' if name == 'quickstart' else f' {name}'} ")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_resolved_recipe_reads_back_as_the_same_recipe(name: str):
    recipe = load_recipe(name, ["federation.learning_rate=1.0e-7"], may_read=False)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    assert parse_recipe(yaml.safe_load(text), "config.yaml") == recipe


def test_a_recipe_takes_its_files_name_unless_it_has_one(recipe_values: dict[str, Any], tmp_path: Path):
    values = {key: value for key, value in recipe_values.items() if key != "name"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(tmp_path / "mine.yaml").name == "mine"


def test_a_recipe_that_is_nowhere_names_the_nearest_shipped_one():
    with pytest.raises(InputError, match=r"no recipe file 'quickstrat'.*did you mean 'quickstart'"):
        load_recipe("quickstrat")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "", "\ttab: 1", "just words"])
def test_a_file_that_is_no_recipe_is_named_in_one_line(tmp_path: Path, text: str):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read the recipe .*broken\.yaml"):
        load_recipe(path)


def test_a_recipe_cannot_be_changed_once_read(recipe_file: Path):
    recipe = load_recipe(recipe_file)
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 5  # type: ignore[misc]
