"""Data that was read without a word as something else than it is: lists as classes, prices as names, a lost client."""

from pathlib import Path

import pytest

from fftmoe.data import Table
from fftmoe.data.list_cells import usual_separator
from fftmoe.data.number_columns import holds_fractions, with_decimal_point
from fftmoe.data.read import read_folder
from fftmoe.data.roles import guess_roles
from fftmoe.data.undivided import read_undivided
from fftmoe.errors import InputError
from tables import write_csv

NAMES = ("cardio", "derm", "neuro")


@pytest.mark.parametrize("sign", ["|", ";"])
def test_a_few_lists_of_known_names_are_lists(sign: str):
    lists = [sign.join(NAMES[:2]), f"{NAMES[2]}{sign} {NAMES[0]}", sign.join(NAMES)]
    assert usual_separator([*NAMES * 7, *lists]) == sign
    assert usual_separator(list(NAMES) * 7) is None
    # One name may hold a sign, and so may names of which nobody has the parts.
    assert usual_separator([*NAMES * 7, lists[0]]) is None
    assert usual_separator([*NAMES * 7, f"a{sign}b", f"c{sign}d", lists[0]]) is None


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1,049.50", "1049.50"),
        ("1,234,567", "1234567"),
        ("1 049,50", "1049.50"),
        ("1'049.50", "1049.50"),
        ("1\u202f049", "1049"),
        ("1.049,50", "1049.50"),
        ("76,83", "76.83"),
        ("1,049,5", None),
        ("1049.50", None),
        ("Smith, 1,049", None),
    ],
)
def test_numbers_of_other_countries_are_numbers(written: str, number: str | None):
    assert with_decimal_point(written) == number


def test_prices_with_thousands_are_no_names():
    prices = [f"{1 + n},0{n:02}.5{n % 10}" for n in range(40)]
    table = Table.of("ads.csv", {"ad": [f"a flat with {n} rooms" for n in range(40)], "price": prices})
    assert holds_fractions(table, "price")
    assert guess_roles(table, {}).task == "regression"


def test_a_client_without_rows_is_named(tmp_path: Path):
    rows = {"text": ["a b", "c d"] * 5, "label": ["x", "y"] * 5}
    (tmp_path / "sites").mkdir()
    for name in ("a", "b"):
        write_csv(tmp_path / "sites" / f"{name}.csv", rows)
    write_csv(tmp_path / "sites" / "c.csv", {"text": [], "label": []})
    with pytest.raises(InputError, match=r"c\.csv has no row, so the client 'c'"):
        read_undivided(tmp_path / "sites")


def test_a_client_may_be_without_test_rows(tmp_path: Path):
    rows = {"text": ["a b", "c d"] * 5, "label": ["x", "y"] * 5}
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    for name in ("a", "b"):
        write_csv(tmp_path / "train" / f"{name}.csv", rows)
    write_csv(tmp_path / "test" / "a.csv", rows)
    write_csv(tmp_path / "test" / "b.csv", {"text": [], "label": []})
    tables = read_folder(tmp_path, ())
    assert {split: table.num_rows for split, table in tables.items()} == {"train": 20, "test": 10}


@pytest.mark.parametrize("named", [{}, {"data.label": "price"}])
def test_numbers_are_not_predicted_from_images(named: dict[str, str]):
    paths, prices = [f"{n}.png" for n in range(40)], [f"{n + 0.5}" for n in range(40)]
    table = Table.of("houses.csv", {"image": paths, "price": prices})
    with pytest.raises(InputError, match="cannot be predicted from images"):
        guess_roles(table, named)
