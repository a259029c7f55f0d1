"""Fixtures of private runs."""

from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.setup.run import run
from finished import Finished
from private_runs import LABELS, PrivateRecipe, RunPrivate
from tampering import recipe_of


@pytest.fixture
def private_recipe(recipe_values: dict[str, Any]) -> PrivateRecipe:
    """`private_recipe("fft-moe", SUMS, **{"federation.rounds": 7})`: a recipe of five clients, three in a round."""

    def make(method: str, privacy: Any, **changes: Any) -> dict[str, Any]:
        declared = {"adapter.residents": "balanced", "data.labels": LABELS}
        recipe = recipe_of(method, recipe_values, **{**declared, **changes})
        return {**recipe, "privacy": privacy}

    return make


@pytest.fixture
def run_private(private_recipe: PrivateRecipe, tmp_path: Path) -> RunPrivate:
    """`run_private("name", "fft-moe", SUMS, **changes)` runs such a recipe into `tmp_path / "name"`."""

    def make(name: str, method: str, privacy: Any, **changes: Any) -> Finished:
        run(parse_recipe(private_recipe(method, privacy, **changes), "tiny"), tmp_path / name)
        return Finished(tmp_path / name)

    return make
