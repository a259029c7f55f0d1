"""The answer that needs no model: always the commonest label, beside the result wherever that is not clearly better."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.report.answer import COMMONEST, answer, compared
from fftmoe.report.constant import commonest, never_given
from fftmoe.report.next_step import next_step
from fftmoe.report.page import report_page
from fftmoe.report.record import RunRecord
from reports import HOSTILE, config, rows, summary


def counts_of(rows: list[list[int]]) -> dict[str, Any]:
    """The counts of a confusion matrix, a list of rows for each label."""
    size = range(len(rows))
    return {
        "name": [f"label-{place}" for place in size],
        "actual": [sum(row) for row in rows],
        "predicted": [sum(row[place] for row in rows) for place in size],
        "hits": [rows[place][place] for place in size],
        "confusion": rows,
    }


ALWAYS_FIRST = counts_of([[76, 0], [4, 0]])


@given(
    st.integers(1, 7).flatmap(
        lambda size: st.lists(st.lists(st.integers(0, 23), min_size=size, max_size=size), min_size=size, max_size=size)
    )
)
def test_its_share_is_that_of_the_best_constant_answer(matrix: list[list[int]]):
    found = commonest(summary(labels=counts_of(matrix)))
    total = sum(map(sum, matrix))
    assert (found is None) == (total == 0)
    if found is not None:
        right_by_answer = [sum(row) for row in matrix]  # answering this label to every row
        assert found.share * total == pytest.approx(max(right_by_answer), rel=1e-12)  # one division and one product
        assert right_by_answer[int(found.label.removeprefix("label-"))] == max(right_by_answer)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=23))
def test_labels_without_a_prediction_are_counted_where_they_occur(pairs: list[tuple[int, int]]):
    names = [f"label-{place}" for place in range(len(pairs))]
    counts = {"name": names, "actual": [a for a, _ in pairs], "predicted": [p for _, p in pairs]}
    missed = [name for name, (actual, predicted) in zip(names, pairs, strict=True) if actual and not predicted]
    said = never_given({"labels": counts})
    assert bool(said) == bool(missed)
    if missed:
        assert said.startswith(f"{len(missed)} of ")
        assert sum(f"{name!r}" in said for name in missed) == min(len(missed), 5)


def test_a_model_that_always_answers_the_same_is_not_called_better():
    found = summary(accuracy=0.95, accuracy_interval=[0.88, 0.98], labels=ALWAYS_FIRST)
    (constant,) = [each for each in compared(found) if each.name == COMMONEST]
    assert (constant.value, constant.result) == (0.95, "level")
    assert answer(found).startswith(
        "accuracy 0.950 (95 % interval 0.880 to 0.980) is not clearly different from always answering 'label-0' (0.950)"
    )
    run = RunRecord(config(), rows(), found, "runs/mine")
    assert next_step(run).why.startswith("the model is not clearly better than always answering 'label-0'")
    page = report_page(run).html
    assert page.count("1 of 2 labels in the test rows is never given: &#39;label-1&#39; (4).") == 2  # above, and below


@pytest.mark.parametrize(("interval", "result"), [([0.96, 0.99], "better"), ([0.9, 0.94], "worse"), (None, "")])
def test_its_value_is_compared_with_the_interval_of_the_result(interval: list[float] | None, result: str):
    found = summary(accuracy=0.95, accuracy_interval=interval, labels=ALWAYS_FIRST)
    assert [each.result for each in compared(found) if each.name == COMMONEST] == [result]
    assert ("always answering" in answer(found)) == (result != "better")


@pytest.mark.parametrize("metric", ["f1", "perplexity", "mean_absolute_error"])
def test_other_metrics_have_no_such_answer(metric: str):
    assert commonest(summary(metric, labels=ALWAYS_FIRST)) is None
    assert commonest(summary(metric)) is None


def test_names_of_labels_are_text_in_sentences():
    counts = {**ALWAYS_FIRST, "name": [HOSTILE, HOSTILE + "2"]}
    found = summary(accuracy=0.95, accuracy_interval=[0.9, 0.97], labels=counts)
    assert HOSTILE not in report_page(RunRecord(config(), rows(), found)).html
    assert "\x1b" not in answer({**found, "labels": {**counts, "name": ["\x1b[31m", "b"]}})
