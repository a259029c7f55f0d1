"""Every plotted value: whole in the CSV file beside a page, told to a pointer, and harmless in a spreadsheet."""

import csv
import io
import re
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.comparison.page import comparison_page
from fftmoe.comparison.statistics import CellResult, Comparison
from fftmoe.report import page as run_page
from fftmoe.report.draw import Line, line_figure
from fftmoe.report.marks import Text, ticks
from fftmoe.report.numbers import HEADER, Numbers, PlottedNumber, csv_of
from fftmoe.report.record import RunRecord, with_noun
from fftmoe.report.render import Page
from reports import config, rows, summary

COUNTS = {"name": ["ash", "bay"], "actual": [3, 5], "predicted": [4, 4], "hits": [2, 3], "confusion": [[2, 1], [2, 3]]}


def page_of_run(recorded: list[dict[str, Any]], facts: dict[str, Any]) -> Page:
    return run_page.report_page(RunRecord(config(), recorded, facts))


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def hints(page: Page) -> list[str]:
    return [unescape(found) for found in re.findall(r"<title>(.*?)</title>", page.html)]


def test_every_number_of_a_page_is_in_its_csv_and_is_told_to_a_pointer():
    page = page_of_run(rows(), summary(labels=COUNTS))
    found = parsed(page.csv)
    captions = {unescape(caption) for caption in re.findall("<figcaption>(.*?)</figcaption>", page.html)}
    assert len(captions) == 10
    tables = {row["figure"] for row in found} - captions
    assert captions < {row["figure"] for row in found}
    assert tables == {"Labels", "Confusion matrix, rows by label and prediction"}
    told = hints(page)
    for row in found:
        if row["figure"] in captions and float(row["value"]) != 0:  # a map has no shade for nothing
            assert any(row["series"] in hint and row["at"] in hint for hint in told), row


def test_the_curve_has_its_values_in_full():
    values = (0.1, None, 1 / 3, 2 / 3)
    found = [row for row in parsed(page_of_run(rows(values=values), summary()).csv) if row["series"] == "global model"]
    assert [(row["across"], row["at"], row["value"]) for row in found] == [
        ("round", "0", "0.1"),
        ("round", "2", "0.3333333333333333"),
        ("round", "3", "0.6666666666666666"),
    ]


def test_a_line_of_very_many_points_is_thinned_on_the_page_alone():
    figure = line_figure("many", [Line("a", [(x, x % 7) for x in range(1009)])], across="round")
    assert figure is not None
    assert figure.numbers is not None
    assert len(figure.numbers.each) == 1009
    assert sum("a, round" in getattr(mark, "hint", "") for mark in figure.marks) == 400


def test_a_band_is_in_the_csv_and_in_the_hint():
    cells = tuple(
        CellResult("a+h", "a", "h", place, seed, "done", summary(accuracy=0.5 + seed / 10), values[2:])
        for place in ("iid", "shards:1")
        for seed, values in enumerate((rows(), rows(values=(0.2, 0.3, 0.4, 0.5))))
    )
    page = comparison_page(Comparison("c", cells))
    found = parsed(page.csv)
    assert {row["figure"].rpartition(", ")[2] for row in found} == {"iid", "shards:1"}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in found)
    assert any(re.fullmatch(r"a\+h, round 3: [\d.]+ \([\d.]+ to [\d.]+\)", hint) for hint in hints(page))


def test_a_page_of_nothing_has_a_csv_with_its_header_alone():
    assert page_of_run([], {}).csv == ",".join(HEADER) + "\r\n"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+49", "'+49"),
        ("-2", "'-2"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\t'=1"),
        (" =1", " '=1"),
        ("\uff1d1", "'\uff1d1"),
        ("a;=1", "a;'=1"),
        ("a\n=1", "a\n'=1"),
        ("a-b", "a-b"),
        ("x = y", "x = y"),
        ("\x1b[31m", "\\x1b[31m"),
        ('"=1', '"=1'),
    ],
)
def test_a_name_from_data_is_no_formula(name: str, cell: str):
    (row,) = parsed(csv_of([Numbers(name, name, [PlottedNumber(name, name, -0.5)])]))
    assert [row[key] for key in HEADER] == [cell, cell, cell, cell, "-0.5", "", ""]


@given(st.text(alphabet=st.sampled_from("=+-@;,|\t\r\n\"' a\u00a0\uff1d")))
def test_no_part_of_a_cell_begins_like_a_formula_whatever_separates_parts(name: str):
    (row,) = parsed(csv_of([Numbers("f", "x", [PlottedNumber(name, name, 1)])]))
    parts = re.split("[;,|\t\r\n]", row["series"])
    assert not any(part.strip().startswith(("=", "+", "-", "@", "\uff1d")) for part in parts)


# ---- axes -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_rounds_are_whole(low: int, span: int):
    values = ticks(low, low + span, 6, whole=True)
    assert all(float(value).is_integer() for value in values)
    assert len(values) <= 9


@pytest.mark.parametrize("last", [1, 2, 3, 4, 5, 7, 15, 30])
def test_the_axis_of_a_curve_names_whole_rounds(last: int):
    figure = line_figure("f", [Line("a", [(x, 0.5) for x in range(last + 1)])], across="round")
    assert figure is not None
    below = [mark.text for mark in figure.marks if isinstance(mark, Text) and mark.y == 178 + 14]
    assert len(below) >= 2
    assert all(text.isdigit() for text in below)


def test_a_value_of_a_file_agrees_with_its_noun_and_need_be_no_number():
    assert [with_noun(value, "round") for value in (1, 1200, "?")] == ["1 round", "1,200 rounds", "? rounds"]
