"""The page of the results begins with results: a table from the committed cells, and five sentences on it."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text()


@pytest.fixture
def one_table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("one_table")


def test_the_page_has_the_table_of_the_committed_cells(one_table: Any):
    cells = [cell for file in one_table.FILES for cell in one_table.read_cells(one_table.RESULTS / file)]
    assert PAGE.startswith(f"# Results of the comparison\n\n{one_table.table(cells)}\n")


def test_a_figure_is_the_mean_over_skewed_partitions_and_seeds(one_table: Any, tmp_path: Path):
    accuracies = {("iid", 0): 0.9, ("iid", 1): 0.9, ("a", 0): 0.2, ("b", 0): 0.4, ("a", 1): 0.5, ("b", 1): 0.7}
    place = {"data": "trec6", "variant": "fedit+averaged", "method": "fedit", "head": "averaged", "status": "done"}
    cells = [
        {**place, "partition": kind, "seed": seed, "accuracy": value, "rows": [], "machine": 0}
        for (kind, seed), value in accuracies.items()
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"scale": "committed", "machines": [{}], "cells": cells}))
    read = one_table.read_cells(path)
    assert one_table.under_skew(read, "trec6", "fedit+averaged").startswith("0.450 ±")
    assert one_table.under_skew(read, "trec6", "flora+averaged") == "–"


def test_results_come_before_commands_and_paths():
    beginning = PAGE.split("\n## ")[0]
    assert len(re.findall(r"^\d\. \*\*", beginning, flags=re.MULTILINE)) == 5
    assert "`" not in beginning
