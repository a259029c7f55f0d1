"""A file without a line of names, and a folder without a table, are named as what they are."""

from pathlib import Path

import pytest

from fftmoe.data.first_line import LONGEST_NAME, listed_names, value_among_names
from fftmoe.data.sources import read_raw
from fftmoe.errors import InputError


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("text", "label", "1", "2024", "v1.5", "", "1.2.3"), None),
        (("1", "-0.9", "a text"), "-0.9"),
        (("1", ".5e-3"), ".5e-3"),
        (("1", "x" * (LONGEST_NAME + 1)), "x" * (LONGEST_NAME - 1) + "…"),
        ((), None),
    ],
)
def test_a_fraction_or_a_long_text_looks_like_a_value(names: tuple[str, ...], found: str | None):
    assert value_among_names(names) == found


def test_many_names_are_counted():
    assert listed_names(map(str, range(10))) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_files_of_clients_without_names_of_columns_are_told_so(tmp_path: Path):
    for number, name in enumerate(("north", "south", "west")):
        (tmp_path / f"{name}.tsv").write_text(f"1_{number // 2}\t{number}.5\tash {number}\n2\t1.5\tbay\n")
    with pytest.raises(InputError) as error:
        read_raw(str(tmp_path))
    assert str(error.value).endswith(
        "the files share no column (north has 1_0, 0.5, ash 0; west has 1_1, 2.5, ash 2); "
        "the first line names the columns, and '0.5' looks like a value: begin each file with a line of names"
    )


def test_a_folder_of_files_that_are_not_read_is_told_which_are(tmp_path: Path):
    (tmp_path / "north.txt").write_text("1\tash\n")
    (tmp_path / ".hidden.csv").write_text("text\n")
    with pytest.raises(InputError, match=r"holds no table: north\.txt is not read; save its files as \.parquet, \.csv"):
        read_raw(str(tmp_path))
    (tmp_path / "train.csv.zip").touch()  # was meant to be a split, and other messages say so
    assert read_raw(str(tmp_path)).splits == {}


def test_a_tab_and_a_double_quote_are_named_as_people_write_them(tmp_path: Path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"so" he said\tx\n')
    with pytest.raises(InputError, match=r"line 2: a tab expected after '\"'; write each double quote within a cell"):
        read_raw(str(tmp_path / "a.tsv"))
