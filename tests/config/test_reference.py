"""Every key of a recipe has a default and an entry in the reference."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fftmoe.config import complete_recipe
from fftmoe.config.default_rules import RULES
from fftmoe.config.defaults import fill_in
from fftmoe.config.schema import Recipe


def sections(path: str, section: type[BaseModel]) -> dict[str, Any]:
    """The fields of a section and of those within it, by dotted key."""
    found: dict[str, Any] = {}
    for key, field in section.model_fields.items():
        found[path + key] = field
        for inner in models(field.annotation):
            found |= sections(f"{path}{key}.", inner)
    return found


def models(annotation: Any) -> list[type[BaseModel]]:
    inner = [found for argument in getattr(annotation, "__args__", ()) for found in models(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else inner


def recipe_reference() -> str:
    """The page as the documentation makes it."""
    spec = spec_from_file_location("site_hooks", Path(__file__).parents[2] / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return str(hooks.recipe_page())


KEYS = sections("", Recipe)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_says_what_it_does(key: str):
    description = KEYS[key].description or ""
    assert description.endswith("."), key
    assert len(description.split()) > 2, key


def test_the_page_has_every_key_with_its_default_and_its_text():
    page = recipe_reference()
    for key, field in KEYS.items():
        shown = key.replace("budgets.", "budgets[].")
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{shown}` |")]
        assert " ".join(field.description.split()) in line, key


def test_a_recipe_of_one_line_is_whole():
    recipe, chosen = complete_recipe({"data": {"source": "notes.csv"}}, "test", may_read=False)
    assert recipe.data.source == "notes.csv"
    assert chosen == {}
    # Completing twice changes nothing, so a run folder's file means the same.
    again = fill_in(recipe.model_dump(mode="json", exclude_none=True), may_read=False).values
    assert complete_recipe(again, "test", may_read=False)[0] == recipe


def test_every_rule_is_for_a_key_that_exists_and_comes_once_for_each_task():
    assert {rule.key for rule in RULES} <= KEYS.keys()
