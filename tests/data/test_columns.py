"""Values of columns, one by one: what is a name, a number, a list, a class, and what the message says of the rest."""

import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from fftmoe.data import read as reader
from fftmoe.data.columns import check_column, lists_of, names_of, numbers_of, owners_of, plain_columns, spelled
from fftmoe.data.read import read_folder, read_lines, read_table
from fftmoe.data.table import Table
from fftmoe.data.text_encodings import TextEncoding
from fftmoe.errors import InputError

CLASSES = {"label": ("no", "yes")}


def table_of(*values: Any, classes: bool = False) -> Table:
    return Table("t.parquet", {"label": values}, len(values), CLASSES if classes else {})


def names(table: Table) -> list[str]:
    return names_of(table, "label", "label", "data.label")


def test_class_numbers_have_their_names_and_other_values_their_own():
    table = table_of(1, 0, "1", True, classes=True)
    assert names(table) == ["yes", "no", "1", "true"]
    assert spelled(table_of(1, None, [0, "x"], -1, 1.5, classes=True), "label") == ["yes", "", ["no", "x"], "", 1.5]
    assert lists_of(table_of([1, 0], ["x"], classes=True), "data.tags", "label") == [["yes", "no"], ["x"]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (2, r"the class number 2, and the file names classes 0 to 1 only \(row 2\)"),
        (-2, r"the class number -2"),
        (1.0, r"float values such as 1.0 \(row 2\)"),
        (None, r"has no label in row 2 \(value None\)"),
        (-1, r"has no label in row 2 \(value -1\)"),
        (" ", r"has no label in row 2 \(value ' '\)"),
    ],
)
def test_a_value_that_is_no_class_is_named_with_its_row(value: Any, words: str):
    with pytest.raises(InputError, match=words):
        names(table_of(0, value, classes=True))


def test_without_classes_values_have_one_spelling():
    assert names(table_of(1, "01", True, False)) == ["1", "01", "true", "false"]
    assert spelled(table_of(1, None, [True, None], {"a": 1}), "label") == ["1", "", ["true", ""], {"a": 1}]
    assert lists_of(table_of(["a", 1, False]), "data.tags", "label") == [["a", "1", "false"]]
    assert spelled(table_of(("a", 1)), "label") == [["a", "1"]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ab", r"holds 'ab' in row 2, which is not a list of names"),
        (None, r"holds None in row 2, which is not a list of names"),
        ({"a": 1}, r"in row 2, which is not a list of names"),
        ([1.5], r"holds float values such as 1.5 in row 2"),
        (["a", None], r"a list in column 'label' has no value in row 2"),
    ],
)
def test_what_is_no_list_of_names_is_named_with_its_row(value: Any, words: str):
    with pytest.raises(InputError, match=words):
        lists_of(table_of(["a"], value), "data.tags", "label")


def test_a_column_is_plain_if_half_of_its_values_or_more_are_names():
    assert plain_columns(table_of("a", None, 1.5, [])) == {"label": ["a", "", "", ""]}
    assert plain_columns(table_of("a", 1.5, 1.5)) == {}
    assert plain_columns(table_of(1, 0, -1, 5, classes=True)) == {"label": ["yes", "no", "", ""]}
    assert plain_columns(table_of(1, True)) == {"label": ["1", "true"]}


@pytest.mark.parametrize("value", [1e30, -1e30, "1e30", 0])
def test_numbers_up_to_the_largest_are_read(value: Any):
    assert numbers_of(table_of(value), ["label"]).tolist() == [[float(value)]]


@pytest.mark.parametrize(
    "value", [math.nextafter(1e30, math.inf), -1.1e30, math.inf, math.nan, 10**400, True, "x", None]
)
def test_other_numbers_are_refused(value: Any):
    with pytest.raises(InputError, match="not a finite number up to 1e30"):
        numbers_of(table_of(value), ["label"])


def test_a_row_has_an_owner_or_none():
    assert owners_of(table_of("a", 1, None, " ", 1.5, True), "label") == ["a", "1", None, None, None, "true"]
    assert owners_of(table_of(1, -1, 2, "x", classes=True), "label") == ["yes", None, None, "x"]


def test_a_column_is_there_and_has_rows():
    check_column(table_of("a"), "label", ["data.label"])
    with pytest.raises(InputError, match=r"t\.parquet has no rows; every split needs at least one"):
        check_column(table_of(), "label", ["data.label"])
    with pytest.raises(InputError, match=r"no column 'labels'; did you mean 'label'\?; .*with data.text or data.label"):
        check_column(table_of("a"), "labels", ["data.text", "data.label"])
    with pytest.raises(InputError, match=r"has no column 'xyz'; it has label: name one of them with data\.text$"):
        check_column(table_of("a"), "xyz", ["data.text"])


# Parquet


@pytest.fixture
def column(tmp_path: Path) -> Any:
    path = tmp_path / "t.parquet"
    table = pyarrow.table({"n": list(range(7)), "when": pyarrow.array([0] * 6 + [2**60], pyarrow.timestamp("ms"))})
    parquet.write_table(table, path)
    return read_table(path).columns


def test_parts_of_a_column_are_its_values(column: Any):
    own = column["n"]
    for part in (slice(None), slice(2, 5), slice(5, 2), slice(-3, None), slice(None, None, 2), slice(None, None, -1)):
        assert list(own[part]) == list(range(7))[part]
    assert [own[place] for place in range(-7, 7)] == [*range(7), *range(7)]
    for place in (7, -8):
        with pytest.raises(IndexError):
            own[place]


def test_only_the_rows_that_are_asked_for_are_converted(column: Any):
    """A column of images may be larger than memory; the last value of this one cannot be converted."""
    own = column["when"]
    assert len(own[:6]) == 6
    assert own[0] == own[5]
    for read in (lambda: own[6], lambda: own[-1], lambda: own[5:], lambda: list(own)):
        with pytest.raises(InputError, match=r"column 'when' has values of type timestamp\[ms\] that cannot be read"):
            read()


@pytest.mark.parametrize(
    ("feature", "found"),
    [
        ('{"_type": "ClassLabel", "names": ["a", "b"]}', {"x": ("a", "b")}),
        ('{"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": ["a"]}}', {"x": ("a",)}),
        ('[{"_type": "ClassLabel", "names": ["a", "b"]}]', {"x": ("a", "b")}),
        ('[{"_type": "ClassLabel", "names": ["a"]}, {"_type": "Value"}]', {}),
        ('{"0": {"_type": "ClassLabel", "names": ["a"]}}', {}),
        ('"text"', {}),
        ("[]", {}),
        ("null", {}),
        ("7", {}),
    ],
)
def test_notes_of_any_form_name_classes_or_none(tmp_path: Path, feature: str, found: dict[str, tuple[str, ...]]):
    notes = f'{{"info": {{"features": {{"x": {feature}}}}}}}'.encode()
    table = pyarrow.table({"x": [0, 1]}).replace_schema_metadata({b"huggingface": notes})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").class_names == found


# Files


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(5, "Input/output error", "t.csv"), "cannot be read as csv: Input/output error; correct"),
        (ValueError("two\n words"), "cannot be read as csv: two words; correct"),
        (ValueError(), "cannot be read as csv: ValueError; correct"),
        (pyarrow.ArrowMemoryError("malloc of size 9 failed"), "it needs more memory than there is"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, words: str):
    def fail(path: Path, encoding: TextEncoding) -> Any:
        raise error

    monkeypatch.setattr(reader, "TABLE_READERS", {"csv": fail})
    (tmp_path / "t.csv").write_text("a\n")
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / "t.csv")


def test_what_is_no_file_is_no_table_and_no_lines(tmp_path: Path):
    (tmp_path / "t.csv").mkdir()
    for name in ("t.csv", "missing.csv", "t.txt"):
        with pytest.raises(InputError, match="is not a file that ends in"):
            read_table(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot read --file .*t.csv as one text per line; Is a directory"):
        read_lines(tmp_path / "t.csv")
    (tmp_path / "t.txt").write_bytes(b"a\xff")
    with pytest.raises(InputError, match=r"cannot read --file .*t.txt as one text per line; .*UTF-8"):
        read_lines(tmp_path / "t.txt")
    with pytest.raises(InputError, match="has no train and no test split \\(it has none\\)"):
        read_folder(tmp_path / "t.csv")
