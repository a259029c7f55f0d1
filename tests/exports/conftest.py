"""Fixtures of the tests of exports."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from run_fixtures import RunValues


@pytest.fixture(scope="module")
def texts(run_values: RunValues, recipe_values: dict[str, Any]) -> Path:
    """Two tiers, the smaller with one block of two; personal router rows; shared updates in blocks and in attention."""
    own = {"router": "shared+personal", "shared_dim": 3, "shared_rank": 2}
    small, large = recipe_values["budgets"]
    # A learning rate that is high enough for the experts to change.
    federation = {**recipe_values["federation"], "learning_rate": 0.1}
    return run_values(
        {
            **recipe_values,
            "adapter": {**recipe_values["adapter"], **own},
            "budgets": [{**small, "blocks": "last-1"}, large],
            "federation": federation,
        }
    ).folder


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """The folder to export to; afterwards no temporary folder may be next to it."""
    yield tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
