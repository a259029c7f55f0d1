"""Near-equal labels, clients, columns and tiers are distinct, and every place where a person looks says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from run_fixtures import RunValues
from shared_fixtures import Cli
from tables import write_csv

SITES = ("north", "north ", "South", "south")


@pytest.fixture
def near(recipe_values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe with two tiers of nearly equal names, on data whose labels and sites differ by blanks and case."""
    for split, size in (("train", 64), ("test", 24)):
        columns = {
            "text": [f"red ash {n}" for n in range(size)],
            "label": [("HUM", "HUM ", "LOC")[n % 3] for n in range(size)],
            "Label": ["x"] * size,
            "site": [SITES[n % 4] for n in range(size)],
        }
        write_csv(tmp_path / f"{split}.csv", columns)
    tiers = [{"name": name, "fraction": 0.5, "top_k": 2, "experts": 5} for name in ("Small", "small")]
    return {
        **recipe_values,
        "data": {"source": str(tmp_path), "max_length": 13, "validation": "off"},
        "partition": {"kind": "natural", "by": "site"},
        "budgets": tiers,
        "federation": {**recipe_values["federation"], "rounds": 1, "clients_per_round": 2},
    }


def test_near_equal_names_are_kept_apart_and_pointed_out(cli: Cli, run_values: RunValues, near: dict[str, Any]):
    done = run_values(near)
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["num_clients"] == len(SITES)
    assert json.loads((done.folder / "adapter" / "labels.json").read_text())["labels"] == ["HUM", "HUM ", "LOC"]
    expected = {
        "columns": "'Label' and 'label'",
        "labels": "'HUM' and 'HUM '",
        "clients": "'South' and 'south'; 'north' and 'north '",
        "tiers": "'Small' and 'small'",
    }
    notes = [note for note in summary["notes"] if "differ only in" in note]
    assert len(notes) == len(expected)
    page = (done.folder / "report.html").read_text()
    planned = cli("plan", done.folder / "config.yaml").out
    for note, (what, names) in zip(notes, expected.items(), strict=True):
        assert note.startswith(f"{what} that differ only in blanks, case or the form of characters count as different")
        assert names in note
        assert f"warning: {note}" in done.outcome.out
        assert f"warning: {note}" in planned
        assert names.replace("'", "&#39;") in page


def test_a_run_with_other_names_says_nothing(run_values: RunValues, recipe_values: dict[str, Any]):
    done = run_values({**recipe_values, "trackers": []})
    notes = json.loads((done.folder / "summary.json").read_text()).get("notes", [])
    assert not [text for text in (*notes, done.outcome.out) if "differ only in" in text]


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("data", {"labels": ["a", "b", "a"]}, "two labels are called 'a'"),
        ("data", {"labels": ["a", " "]}, "one of the labels is blank"),
        ("data", {"targets": ["y", "y"]}, "two columns of data.targets are called 'y'"),
        ("budgets", [{"name": "a\x1b", "fraction": 1.0, "top_k": 1, "experts": 2}], "is no name"),
        ("budgets", [{"name": "a", "fraction": 0.5, "top_k": 1, "experts": 2}] * 2, "the same name"),
    ],
)
def test_equal_or_invisible_names_in_a_recipe_are_refused(
    recipe_values: dict[str, Any], section: str, values: Any, words: str
):
    whole = values if isinstance(values, list) else {**recipe_values[section], **values}
    with pytest.raises(InputError, match=words):
        parse_recipe({**recipe_values, section: whole}, "here")
