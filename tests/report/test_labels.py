"""The table of labels: recall, precision and F1 by hand, the worst first, and absent where there are no labels."""

import csv
import io
import re
from typing import Any

import pytest

from fftmoe.report.labels import LABELS_IN_A_TABLE, labels
from fftmoe.report.page import report_page
from fftmoe.report.record import RunRecord
from reports import HOSTILE, config, rows, structure_of, summary

COUNTS = {
    "name": ["ash", "bay", "cod", "dew"],
    "actual": [4, 5, 2, 0],
    "predicted": [5, 4, 0, 2],
    "hits": [3, 3, 0, 0],
    "confusion": [[3, 1, 0, 0], [1, 3, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]],
}


def run_of(task: str = "sequence-classification", **facts: Any) -> RunRecord:
    return RunRecord(config(backbone={"model": "m", "task": task}), rows(), summary(**facts))


def test_labels_are_listed_the_worst_first():
    found = labels(run_of(labels=COUNTS))
    assert found is not None
    assert found.rows == [
        ("cod", "2", "0.000", "–", "0.000"),
        ("bay", "5", "0.600", "0.750", "0.667"),
        ("ash", "4", "0.750", "0.600", "0.667"),
        ("dew", "0", "–", "0.000", "0.000"),
    ]
    assert found.num_more == 0


def test_the_matrix_has_shades_by_share_of_a_label():
    found = labels(run_of(labels=COUNTS))
    assert found is not None
    assert found.confusion is not None
    by_label = dict(found.confusion.rows)
    assert [(cell.text, cell.shade) for cell in by_label["ash"]] == [("3", 6), ("1", 2), ("0", 0), ("0", 0)]
    assert [cell.shade for cell in by_label["dew"]] == [0, 0, 0, 0]
    page = structure_of(report_page(run_of(labels=COUNTS)).html)
    assert "Confusion matrix" in page.headings
    assert any(cell.get("title") == "bay, predicted as dew: 1" for _, cell in page.elements)


def test_of_many_labels_the_worst_are_shown_and_all_are_in_the_csv():
    size = LABELS_IN_A_TABLE + 3
    many = {
        "name": [f"label {n}" for n in range(size)],
        "actual": [size] * size,
        "predicted": [size] * size,
        "hits": list(range(size)),
    }
    page = report_page(run_of(labels=many))
    text = structure_of(page.html).text
    assert re.findall(">(label [0-9]+)</th>", page.html) == many["name"][:LABELS_IN_A_TABLE]
    assert "… and 3 more labels" in text
    assert "Confusion matrix" not in text
    found = [row for row in csv.DictReader(io.StringIO(page.csv)) if row["figure"] == "Labels"]
    assert {row["at"] for row in found} == set(many["name"])
    assert [row["series"] for row in found[:4]] == ["test rows", "recall", "precision", "F1"]


def test_tokens_are_no_rows():
    found = labels(run_of("token-classification", labels=COUNTS))
    assert found is not None
    assert found.header[1] == "test tokens"


@pytest.mark.parametrize("facts", [{}, {"labels": None}])
def test_a_run_without_counts_has_no_table(facts: dict[str, Any]):
    """Those are runs of tasks without labels, of versions that did not count, and of very many labels."""
    assert labels(run_of(**facts)) is None
    assert "Labels" not in structure_of(report_page(run_of(**facts)).html).headings


def test_names_of_labels_are_text():
    hostile = {**COUNTS, "name": [f"{HOSTILE}{n}" for n in range(4)]}
    page = structure_of(report_page(run_of(labels=hostile)).html)
    assert page.text.count(HOSTILE) >= 4
