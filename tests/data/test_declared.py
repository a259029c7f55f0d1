"""Rows with labels that are not declared: they keep their places, and nothing else of them remains."""

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data.columns import lists_of
from fftmoe.data.declared import with_declared_labels
from fftmoe.data.table import Table

NAMES = ("no", "yes", "3")
VALUES = st.sampled_from(["no", "yes", 3, "3", "maybe", "", None, 2.5, True, 7, " yes"])


@given(st.lists(VALUES, min_size=1, max_size=7))
def test_only_the_mark_says_that_a_row_had_another_label(values: list[Any]):
    table = Table.of("rows", {"label": values, "text": [str(row) for row in range(len(values))]})
    found, left_out = with_declared_labels(table, "label", NAMES)
    assert found.num_rows == len(found.columns["label"]) == len(values)
    assert found.columns["text"] == table.columns["text"]
    for value, now, marked in zip(values, found.columns["label"], left_out, strict=True):
        assert marked == (value not in ("no", "yes", 3, "3"))
        assert now == ("no" if marked else value)


def test_lists_keep_their_lengths_because_a_tag_belongs_to_each_word():
    lists = [["no", "maybe"], ["yes"], [], ["maybe", None], ["no", "no", "3"]]
    found, left_out = with_declared_labels(Table.of("rows", {"tags": lists}), "tags", NAMES)
    assert left_out.tolist() == [True, False, False, True, False]
    assert list(map(len, found.columns["tags"])) == list(map(len, lists))
    assert found.columns["tags"][0] == ["no", "no"]
    assert all(name in NAMES for own in found.columns["tags"] for name in own)


def test_a_list_may_have_all_declared_names_and_a_marked_one_keeps_those_that_are_declared():
    lists = [["3", "yes", "no"], ["yes", "maybe", "3"]]
    found, left_out = with_declared_labels(Table.of("rows", {"tags": lists}), "tags", NAMES)
    assert left_out.tolist() == [False, True]
    assert found.columns["tags"] == [["3", "yes", "no"], ["yes", "no", "3"]]


def test_numbers_of_classes_are_compared_by_their_names():
    table = Table("rows", {"label": [1, 0, -1, 9]}, 4, {"label": ("yes", "maybe")})
    found, left_out = with_declared_labels(table, "label", NAMES)
    assert left_out.tolist() == [True, False, True, True]
    assert found.columns["label"][1] == 0


def test_the_owner_is_told_how_many_rows_do_not_count(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        with_declared_labels(Table.of("train.csv", {"label": ["no", "x", "y"]}), "label", NAMES)
        with_declared_labels(Table.of("train.csv", {"label": ["no"]}), "label", NAMES)
    (said,) = caplog.messages
    assert said.startswith("train.csv: data.labels does not name the label of 2 of 3 rows")
    assert "x" not in said.split()
    assert np.array_equal(with_declared_labels(Table.of("a", {"l": ["no"]}), "l", NAMES)[1], [False])


def test_a_row_without_a_list_among_lists_does_not_count():
    """It must not end the run either, because that would tell that a client has such a row."""
    table = Table.of("here", {"label": [["a"], None, ["z"], "a", 3, []]})
    declared, left_out = with_declared_labels(table, "label", ("a", "b"))
    assert left_out.tolist() == [False, True, True, True, True, False]
    assert lists_of(declared, "data.label", "label") == [["a"], [], ["a"], [], [], []]
