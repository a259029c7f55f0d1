"""What the README shows is what the package takes."""

import re
from pathlib import Path

import yaml

from fftmoe.config import complete_recipe, load_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_recipe_for_own_data_is_valid_and_ten_lines_long():
    (text,) = blocks_of("yaml")
    complete_recipe(yaml.safe_load(text), "README.md", may_read=False)
    assert len([line for line in text.splitlines() if not line.startswith("#")]) <= 10


def test_python_shown_compiles():
    assert blocks_of("python")
    for text in blocks_of("python"):
        compile(text, "README.md", "exec")


def test_recipes_and_files_named_exist():
    paths = re.findall(r"`((?:docs|recipes|benchmarks)/[\w./]+)`", README)
    recipes = re.findall(r"`recipes/(\w+)\.yaml`", README)
    assert len(paths) > 9
    assert len(recipes) > 4
    for path in paths:
        assert (ROOT / path).exists(), path
    for name in recipes:
        load_recipe(name, may_read=False)
