"""docs/own-loss.md shows the example as it is, and the example's loss is part of every step."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import fftmoe
from fftmoe.config import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-loss.md").read_text()
EXAMPLE = ROOT / "examples" / "own_loss.py"


def test_the_page_shows_the_example():
    assert re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) == [EXAMPLE.read_text()]


def test_what_the_page_says_of_a_session_is_there():
    parts = runpy.run_path(str(EXAMPLE))
    for name in re.findall(r"`self\.(\w+)", PAGE):
        assert name in {"parameters", "start", "plan", "read_routing"}
    assert {"penalty", "finish"} <= set(dir(parts["SparseChange"]))
    assert "proximal" in Recipe.model_fields["federation"].annotation.model_fields  # type: ignore[union-attr]


def test_the_penalty_of_the_example_changes_what_clients_learn(recipe_file: Path, tmp_path: Path):
    """The clients of this recipe would share a batch."""
    changes = {}
    for strength in (0.0, 10.0):
        parts = runpy.run_path(str(EXAMPLE))
        parts["SparseChange"].penalty.__globals__["STRENGTH"] = strength
        plugins = fftmoe.Plugins(methods={"sparse": parts["Sparse"]})
        asked = ["method=plugin:sparse", "federation.rounds=1", "evaluation.local_only=false"]
        result: Any = fftmoe.run(recipe_file, tmp_path / str(strength), asked, plugins=plugins)
        rows = (result.folder / "metrics.jsonl").read_text().splitlines()
        changes[strength] = float(re.findall(r'"update_norm": ([0-9.e-]+)', rows[-1])[0])
    assert abs(changes[10.0] - changes[0.0]) > 0.1 * changes[0.0]


@pytest.mark.parametrize("name", ["engine.clients_per_batch", "engine.prefix_cache"])
def test_keys_that_the_page_names_exist(name: str):
    section, key = name.split(".")
    assert name in PAGE
    assert key in Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
