"""`--set key=value`: an override reaches any key, and a wrong one is named with its place and its value."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import load_recipe
from fftmoe.errors import InputError


def refused_override(recipe_file: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_recipe(recipe_file, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_off_needs_no_quotes(recipe_file: Path):
    """YAML reads it as false."""
    assert load_recipe(recipe_file, ["engine.prefix_cache=off"]).engine.prefix_cache == "off"
    assert "engine.prefix_cache" in refused_override(recipe_file, "engine.prefix_cache=true")


def test_overrides_reach_sections_and_items_by_name_or_index(recipe_file: Path):
    recipe = load_recipe(
        recipe_file,
        [
            "seed=11",
            "federation.rounds=7",
            "budgets.small.top_k=2",
            "budgets.1.experts=4",
            "evaluation.max_examples=13",
            "adapter.blocks=[0, 2]",
            "name=a=b",
        ],
    )
    assert (recipe.seed, recipe.federation.rounds, recipe.name) == (11, 7, "a=b")
    assert [(b.top_k, b.experts) for b in recipe.budgets] == [(2, 2), (2, 4)]
    assert recipe.evaluation.max_examples == 13
    assert recipe.adapter.blocks == [0, 2]


def test_an_override_may_open_a_section_that_the_file_leaves_out(recipe_values: dict[str, Any], tmp_path: Path):
    values = copy.deepcopy(recipe_values)
    del values["engine"]
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load_recipe(path, ["engine.workers=3"]).engine.workers == 3


def test_the_last_override_of_a_key_counts(recipe_file: Path):
    assert load_recipe(recipe_file, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", ("'seed'", "section.key=value")),
        ("=3", ("'=3'", "section.key=value")),
        ("seed=[1", ("seed=[1", "not YAML")),
        ("seed.deep=1", ("seed.deep=1", "'deep'")),
        ("seed.very.deep=1", ("seed.very.deep=1", "'very'")),
        ("budgets.huge.top_k=1", ("budgets.huge.top_k=1", "'huge'")),
        ("budgets.9.top_k=1", ("budgets.9.top_k=1", "'9'")),
        ("budgets.small=1", ("budgets.small=1", "'small'")),
        ("federation.roundz=1", ("unknown key 'federation.roundz'", "did you mean 'rounds'")),
        ("budgets.small.topk=1", ("unknown key 'budgets.0.topk'", "did you mean 'top_k'")),
        ("federation.rounds=many", ("federation.rounds", "'many'")),
        ("federation.rounds=", ("federation.rounds", "None")),
    ],
)
def test_a_bad_override_is_named(recipe_file: Path, override: str, words: tuple[str, ...]):
    message = refused_override(recipe_file, override)
    assert all(word in message for word in words), message
