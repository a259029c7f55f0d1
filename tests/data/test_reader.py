"""The reader's law: values are what the file says, the same from every format, encoding and way to end a line."""

import gzip
import json
import re
import string
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fftmoe.data import names_of, number_classes, number_strata, read_texts
from fftmoe.data.columns import labels_of, lists_of, numbers_of, texts_of
from fftmoe.data.conll import CONLL_SUFFIXES
from fftmoe.data.read import SUFFIXES, read_folder, read_table
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from reading import read_labelled_texts
from tables import LINE_ENDS, MARKS, SEPARATORS, encoded, write_csv, write_json, write_jsonl, write_parquet

# What readers guess from: numbers, dates, truth values, missing values, and characters that some take for line ends.
GUESSED = (
    "01",
    "1",
    "1.0",
    "1e3",
    "true",
    "True",
    "NA",
    "null",
    "None",
    "nan",
    "NULL",
    "2020-01-01",
    "00:10",
    "-",
    "0x10",
)
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from(
    "\u2028\u2029\x0b\x0c\x1c\x85\ufeff\"',;|\t \\\r\n"
)
VALUES = st.sampled_from(GUESSED) | st.text(CHARACTERS, max_size=7)
NAMES = st.text(st.sampled_from(string.ascii_letters + " _é.0"), min_size=1, max_size=5)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[str]]:
    names = draw(st.lists(NAMES, min_size=2, max_size=3, unique=True))
    num_rows = draw(st.integers(1, 5))
    return {name: draw(st.lists(VALUES, min_size=num_rows, max_size=num_rows)) for name in names}


def values(path: Path) -> dict[str, list[Any]]:
    table = read_table(path)
    found = {name: list(column) for name, column in table.columns.items()}
    assert set(map(len, found.values())) == {table.num_rows}
    return found


law = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@law
@given(
    columns=tables(),
    separator=st.sampled_from(SEPARATORS),
    line_end=st.sampled_from(LINE_ENDS),
    encoding=st.sampled_from(sorted(MARKS)),
    escaped=st.booleans(),
)
def test_a_table_of_texts_is_read_back_from_every_format(
    tmp_path: Path, columns: dict[str, list[str]], separator: str, line_end: str, encoding: str, escaped: bool
):
    write_csv(tmp_path / "a.csv", columns, separator, line_end, encoding)
    write_csv(tmp_path / "a.tsv", columns, "\t", line_end, encoding)
    for suffix in ("jsonl", "ndjson", "json"):
        write_jsonl(tmp_path / f"a.{suffix}", columns, escaped, encoding)
    write_parquet(tmp_path / "a.parquet", columns)
    for suffix in set(SUFFIXES) - set(CONLL_SUFFIXES):  # which hold lists: see test_conll.py
        assert values(tmp_path / f"a.{suffix}") == columns, suffix
    write_json(tmp_path / "a.json", columns, escaped, encoding)
    assert values(tmp_path / "a.json") == columns


@law
@given(
    st.lists(st.text(CHARACTERS, max_size=7), max_size=5), st.sampled_from(LINE_ENDS), st.sampled_from(sorted(MARKS))
)
def test_a_line_of_a_text_file_is_a_text(tmp_path: Path, texts: list[str], line_end: str, encoding: str):
    lines = [text.replace("\r", " ").replace("\n", " ") for text in texts]
    if encoding == "utf-8" and lines and lines[0].startswith("\ufeff"):
        lines[0] = ""  # at the beginning of a file this is a mark
    (tmp_path / "a.txt").write_bytes(encoded("".join(line + line_end for line in lines), encoding))
    assert read_texts(tmp_path / "a.txt", "text").texts == lines
    (tmp_path / "a.txt").write_bytes(encoded(line_end.join(lines), encoding))
    assert read_texts(tmp_path / "a.txt", "text").texts == (lines if lines and lines[-1] else lines[:-1])


@law
@given(st.lists(VALUES.filter(str.strip), min_size=2, max_size=7).filter(lambda own: len(set(own)) > 1))
def test_labels_clients_and_strata_are_the_texts_of_the_file(tmp_path: Path, names: list[str]):
    columns = {"text": ["a"] * len(names), "label": names}
    orders = set()
    for suffix, write in (("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)):
        folder = tmp_path / suffix
        folder.mkdir(exist_ok=True)
        for split in ("train", "test"):
            write(folder / f"{split}.{suffix}", columns)
        data = read_labelled_texts(str(folder), extra_columns=["label"])
        assert [data.label_names[number] for number in data.splits["train"].labels] == names
        assert data.splits["train"].columns["label"] == names
        strata, known = number_strata(read_folder(folder), ["label"])
        assert [known[number] for number in strata["train"]] == names
        orders.add(data.label_names)
    assert len(orders) == 1  # the order of classes does not depend on the format


def test_two_sites_whose_files_hold_other_values_agree_on_all(tmp_path: Path):
    """A reader that guesses types per file would read `01` as 1 at the first site and as `01` at the second."""
    found = []
    for site, labels in (("a", ["01", "01"]), ("b", ["1", "1"]), ("c", ["01", "A1"])):
        (tmp_path / site).mkdir()
        write_csv(tmp_path / site / "train.csv", {"text": ["x", "y"], "label": labels})
        found += labels_of(read_folder(tmp_path / site, required=("train",))["train"], "label")
    assert found == ["01", "01", "1", "1", "01", "A1"]


# Typed values


def typed(path: Path, values: list[Any], kind: Any = None, notes: Any = None) -> Table:
    table = pyarrow.table({"y": pyarrow.array(values, kind)})
    if notes is not None:
        features = json.dumps({"info": {"features": {"y": notes}}})
        table = table.replace_schema_metadata({b"huggingface": features.encode()})
    parquet.write_table(table, path / "a.parquet")
    return read_table(path / "a.parquet")


@pytest.mark.parametrize(
    ("given", "kind", "names"),
    [
        ([1, 10, -2], None, ["1", "10", "-2"]),
        ([2**63], pyarrow.uint64(), ["9223372036854775808"]),
        ([True, False], None, ["true", "false"]),
        ([date(2020, 1, 31)], None, ["2020-01-31"]),
        (["01", "b"], pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["01", "b"]),
        (["01", "b"], pyarrow.large_string(), ["01", "b"]),
    ],
)
def test_typed_columns_have_one_spelling(tmp_path: Path, given: list[Any], kind: Any, names: list[str]):
    assert labels_of(typed(tmp_path, given, kind), "y") == names


@pytest.mark.parametrize("value", [0.5, 1.0, datetime(2020, 1, 1, tzinfo=UTC), b"ab", [1], {"a": 1}, Decimal("1.5")])
def test_types_with_many_spellings_name_nothing(tmp_path: Path, value: Any):
    with pytest.raises(InputError, match=r"a\.parquet: column 'y' holds .* \(row 1\); labels must be strings or whole"):
        labels_of(typed(tmp_path, [value]), "y")


@pytest.mark.parametrize("number", [2, 7, -2, 10**12])
def test_a_class_number_beyond_its_names_names_row_and_value(tmp_path: Path, number: int):
    named = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    with pytest.raises(
        InputError, match=rf"column 'y' holds the class number {number}, and .* classes 0 to 1 only \(row 3"
    ):
        labels_of(typed(tmp_path, [0, 1, number], None, named), "y")
    for notes in ({"_type": "List", "feature": named}, {"_type": "Sequence", "feature": named}, [named]):
        with pytest.raises(InputError, match=rf"the class number {number}, .* in row 2, which is not a list of names"):
            lists_of(typed(tmp_path, [[0, 1], [number]], None, notes), "data.tags", "y")
        assert lists_of(typed(tmp_path, [[0, 1], []], None, notes), "data.tags", "y") == [["neg", "pos"], []]


def test_classes_have_distinct_names(tmp_path: Path):
    for names in (["a", "a"], ["a", 1], [], "ab"):
        with pytest.raises(InputError, match=r"a\.parquet cannot be read as parquet: .*classes"):
            typed(tmp_path, [0], None, {"names": names, "_type": "ClassLabel"})


def test_json_values_keep_their_types(tmp_path: Path):
    rows = [{"y": 1}, {"y": "1"}, {"y": "x"}, {"y": True}, {"y": 10**40}, {"z": 0, "y": "2020-01-01"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(tmp_path / "a.jsonl")
    assert labels_of(table, "y") == ["1", "1", "x", "true", str(10**40), "2020-01-01"]
    assert list(table.columns) == ["y", "z"]
    assert table.columns["z"] == [None] * 5 + [0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1, "a": 2}', "its JSON has the name 'a' twice"),
        ('{"b": {"a": 1, "a": 2}}', "its JSON has the name 'a' twice"),
        ('{"a": NaN}', "its JSON has NaN, which is not a number"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"a": 1} {"a": 2}', "column 10: Extra data"),
        ('{"a": 1', "column 8"),
        ("[1]", "it is not an object"),
        ("1", "it is not an object"),
        ("[" * 99999, "nested too deep"),
        ('{"a": ' + "9" * 9999 + "}", "digits"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, reason: str):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n' + line + '\n{"a": 1}\n')
    with pytest.raises(InputError, match=rf"a\.jsonl cannot be read as jsonl: line 3.*{reason}.*; correct the line"):
        read_table(tmp_path / "a.jsonl")


# CSV


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a,b\n1,2\n3\n", "row 2 has 1 cell and the header line 2"),
        (b"a,b\n1,2,3\n", "row 1 has 3 cells"),
        (b"a,b\n1,2\n\n,3,\n", "row 2 has 3 cells"),
        (b"a\n1,2\n", "row 1 has 2 cells"),
        (b"a,b,a\n1,2,3\n", "it has two columns named 'a'"),
        (b"a;a\n1;2\n", "it has two columns named 'a'"),
        (b'a,b\n"1,2\n', "line 2: unexpected end of data"),
        (b'a,b\n"1"x,2\n', "line 2: ',' expected after"),
        (b"a,b\n1,\x002\n", "line 2 holds the character NUL, so it is no text; save it as UTF-8"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "it is packed with gzip, and no text; unpack it"),
        (b"PK\x03\x04\x14\0", "it is a zip archive, such as a workbook of Excel"),
        (
            "a,b\n1,2\n".encode("utf-16-le"),
            "line 1 holds the character NUL, so it is no text; as utf-16-le it reads 'a,b'",
        ),
        (
            b"a,b\n1,2\n\xfc,3\n",
            r"line 3 is not UTF-8; as windows-1252 it reads 'ü,3'; if that is right: --set data.encoding=windows-1252",
        ),
        (b"\xff\xfea,b", "line 1 is not UTF-16-LE"),
        (b"", "it is empty"),
        (b"\xef\xbb\xbf\n\n", "it is empty"),
    ],
)
def test_a_csv_file_that_has_two_meanings_is_refused(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.csv cannot be read as csv: {reason}"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("a,b\n1,\n\n,2\n", {"a": ["1", ""], "b": ["", "2"]}),
        ("text\nx\n\ny\n", {"text": ["x", "", "y"]}),
        ("\n\na,b\n1,2", {"a": ["1"], "b": ["2"]}),
        (',a,,b\n0,"1, 2",,3\n', {"": [""], "a": ["1, 2"], "b": ["3"]}),
        ("sep=;\r\na,c;b\r\n1;2\r\n", {"a,c": ["1"], "b": ["2"]}),
        ("sep=|\na\n1\n", {"a": ["1"]}),
        ("a;b\n1,5;x, y\n", {"a": ["1,5"], "b": ["x, y"]}),
        ('"a;b",c\n1,2\n', {"a;b": ["1"], "c": ["2"]}),
        ('a,b\n5" pipe,"say ""x"""\n', {"a": ['5" pipe'], "b": ['say "x"']}),
        ('a,b\n"1\r\n2",3\r\n', {"a": ["1\r\n2"], "b": ["3"]}),
        ("a\n" + "x" * 200_001 + "\n", {"a": ["x" * 200_001]}),
    ],
)
def test_csv_cells_are_texts(tmp_path: Path, content: str, columns: dict[str, list[str]]):
    (tmp_path / "a.csv").write_bytes(content.encode())
    assert values(tmp_path / "a.csv") == columns


def test_parquet_with_two_columns_of_a_name_or_broken_texts_is_refused(tmp_path: Path):
    ints, texts = pyarrow.array([1]), pyarrow.array([b"\xff"]).view(pyarrow.string())
    for arrays, names, reason in (([ints, ints], ["a", "a"], "it has two columns named 'a'"), ([texts], ["a"], "UTF8")):
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names), tmp_path / "a.parquet")
        with pytest.raises(InputError, match=rf"a\.parquet cannot be read as parquet: .*{reason}"):
            read_table(tmp_path / "a.parquet")


def test_the_name_of_a_parquet_file_is_no_partition_and_no_address(tmp_path: Path):
    folder = tmp_path / "label=9" / "http:"
    folder.mkdir(parents=True)
    write_parquet(folder / "train.parquet", {"a": ["x"]})
    assert values(folder / "train.parquet") == {"a": ["x"]}


# Values of tasks


def test_numbers_are_written_as_numbers(tmp_path: Path):
    write_csv(tmp_path / "a.csv", {"y": ["1", " -2.5 ", "+.5e1", "1e-3", "007"]})
    expected = torch.tensor([[1.0], [-2.5], [5.0], [1e-3], [7.0]], dtype=torch.float64)
    assert torch.equal(numbers_of(read_table(tmp_path / "a.csv"), ["y"]), expected)
    assert torch.equal(
        numbers_of(typed(tmp_path, [Decimal("1.5"), Decimal(2)]), ["y"]),
        torch.tensor([[1.5], [2.0]], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "cell", ["", " ", "nan", "inf", "1e999", "1e39", "1_000", "1;5", "0x10", "٣", "one", "1 2", "true"]
)
def test_a_target_that_is_no_finite_number_names_row_and_value(tmp_path: Path, cell: str):
    write_csv(tmp_path / "a.csv", {"x": ["a", "b"], "y": ["1", cell]})
    with pytest.raises(InputError, match=r"a\.csv: column 'y' holds .* in row 2, which is not a finite number"):
        numbers_of(read_table(tmp_path / "a.csv"), ["y"])


@pytest.mark.parametrize(("cell", "right"), [("1,5", "1.5"), ("-0,25 ", "-0.25"), ("1.234.567,8", "1234567.8")])
def test_a_decimal_comma_is_named_with_what_to_write_and_how_often_it_occurs(tmp_path: Path, cell: str, right: str):
    write_csv(tmp_path / "a.csv", {"x": ["a", "b", "c", "d"], "y": ["1", cell, "2,5", "12.5"]})
    said = rf"'y' holds '{re.escape(cell)}' in row 2, and 1 more value like it, with a decimal comma; .* {right},"
    with pytest.raises(InputError, match=said):
        numbers_of(read_table(tmp_path / "a.csv"), ["y"])


@pytest.mark.parametrize("value", [None, True, float("nan"), float("inf"), 10**400, "x", [1]])
def test_a_typed_target_that_is_no_finite_number_names_row_and_value(value: Any):
    with pytest.raises(InputError, match=r"here: column 'y' holds .* in row 2, which is not a finite number"):
        numbers_of(Table.of("here", {"y": [1.0, value]}), ["y"])


@pytest.mark.parametrize("blank", ["", "  ", "\u2003", None])
def test_a_row_without_a_text_label_or_client_is_named(blank: str | None):
    table = Table.of("here", {"y": ["a", blank]})
    with pytest.raises(InputError, match="here: column 'y' is empty in row 2"):
        texts_of(table, "data.text", "y")
    with pytest.raises(InputError, match="here: column 'y' has no client in row 2"):
        names_of(table, "y", "client", "partition.by")
    with pytest.raises(InputError, match="here: column 'y' has no label in row 2"):
        number_classes({"train": table, "test": table}, "y")


@pytest.mark.parametrize("notes", ['{"info": 3}', '{"info": [1]}', '{"info": {"features": ["y"]}}', "[]", "{"])
def test_damaged_notes_of_a_parquet_file_are_named(tmp_path: Path, notes: str):
    table = pyarrow.table({"y": ["a"]}).replace_schema_metadata({"huggingface": notes})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as parquet: "):
        read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize("notes", ["{}", '{"info": null}', '{"info": {"features": null}}'])
def test_notes_of_a_parquet_file_may_lack_the_columns(tmp_path: Path, notes: str):
    table = pyarrow.table({"y": ["a"]}).replace_schema_metadata({"huggingface": notes})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert list(read_table(tmp_path / "a.parquet").columns["y"]) == ["a"]


def test_cells_of_a_tsv_file_are_separated_by_tabs_only(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("text, raw;\tlabel\nred, or blue\tx\n")
    assert values(tmp_path / "a.tsv") == {"text, raw;": ["red, or blue"], "label": ["x"]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"y": 1}, 2]', "item 2 of its list is not an object"),
        ('[\n{"y": 1},\n{"y" 1}]', "line 3, column 6: "),
        ('[{"y": 1, "y": 2}]', "twice"),
        ('[{"y": NaN}]', "not a number"),
        ('[{"y": "\\ud800"}]', "surrogate"),
        ("[" * 100_000, "nested too deep"),
        ('[{"y": 1}] {}', "Extra data"),
        ("3", "line 1: it is not an object"),
    ],
)
def test_a_json_file_that_is_no_table_is_refused_with_its_place(tmp_path: Path, text: str, words: str):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=rf"a\.json cannot be read as json: .*{words}"):
        read_table(tmp_path / "a.json")


@pytest.mark.parametrize("suffix", ["xlsx", "PKL", "arrow"])
def test_a_table_of_another_kind_is_not_read_as_lines(tmp_path: Path, suffix: str):
    (tmp_path / f"a.{suffix}").write_text("text\nred\n")
    with pytest.raises(InputError, match=rf"a\.{suffix} is a table of a kind that is not read; save it as \.parquet"):
        read_texts(tmp_path / f"a.{suffix}", "text")
    (tmp_path / "a.CSV").write_text("text\nred\n")
    assert read_texts(tmp_path / "a.CSV", "text").texts == ["red"]


@pytest.mark.parametrize("read", [lambda table: texts_of(table, "data.text", "y"), lambda table: labels_of(table, "y")])
def test_all_empty_cells_of_a_column_are_counted_at_once(read: Callable[[Table], object]):
    def refused(*cells: str | None) -> str:
        with pytest.raises(InputError, match="in row 2") as caught:
            read(Table("here", {"y": list(cells)}, len(cells)))
        return str(caught.value)

    assert "and 3 more; remove the row" in refused("ash", "", "bay", None, " ", "cod", "")
    assert "more" not in refused("ash", "", "bay")
