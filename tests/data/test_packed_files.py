"""Text files that are packed with gzip are read as what they were, and neither a bomb nor damage gets far."""

import gzip
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fftmoe.data.conll import CONLL_SUFFIXES
from fftmoe.data.packed_files import ALWAYS, MOST_GROWTH, file_bytes, file_kind, file_stem
from fftmoe.data.read import TEXT_SUFFIXES, is_table, read_folder, read_lines, read_table
from fftmoe.data.undivided import read_undivided
from fftmoe.errors import InputError
from tables import write_csv, write_json, write_jsonl, write_parquet

COLUMNS = {"text": ["ash", "bay é"], "label": ["x", "y"]}


def packed(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return target


def test_every_kind_of_text_file_may_be_packed(tmp_path: Path):
    for suffix in TEXT_SUFFIXES:
        path = tmp_path / f"a.{suffix}"
        if suffix in CONLL_SUFFIXES:
            path.write_text("ash x\nbay y\n")
        elif suffix in ("csv", "tsv"):
            write_csv(path, COLUMNS, "\t" if suffix == "tsv" else ",")
        else:
            (write_json if suffix == "json" else write_jsonl)(path, COLUMNS)
        plain = {name: list(values) for name, values in read_table(path).columns.items()}
        target = packed(path)
        assert {name: list(values) for name, values in read_table(target).columns.items()} == plain
        assert plain == ({"tokens": [["ash", "bay"]], "tags": [["x", "y"]]} if suffix in CONLL_SUFFIXES else COLUMNS)
        renamed = target.rename(tmp_path / f"B.{suffix.upper()}.GZ")
        assert list(map(list, read_table(renamed).columns.values())) == list(plain.values())
    (tmp_path / "lines.txt").write_text("ash\nbay\n")
    assert read_lines(packed(tmp_path / "lines.txt")) == ["ash", "bay"]


def test_packed_files_are_splits_and_clients_of_their_names(tmp_path: Path):
    for name in ("train", "Test"):
        (tmp_path / "a").mkdir(exist_ok=True)
        write_csv(tmp_path / "a" / f"{name}.csv", COLUMNS)
        packed(tmp_path / "a" / f"{name}.csv")
    assert sorted(read_folder(tmp_path / "a")) == ["test", "train"]
    (tmp_path / "b").mkdir()
    write_csv(tmp_path / "b" / "north.csv", COLUMNS)
    write_csv(tmp_path / "b" / "south.v2.csv", COLUMNS)
    packed(tmp_path / "b" / "south.v2.csv")
    table = read_undivided(tmp_path / "b")
    assert table is not None
    assert list(table.columns["client"]) == ["north", "north", "south.v2", "south.v2"]
    write_jsonl(tmp_path / "b" / "north.jsonl", COLUMNS)
    with pytest.raises(InputError, match=r"north\.csv and .*north\.jsonl are both of the client 'north'; keep one"):
        read_undivided(tmp_path / "b")


def test_only_text_files_are_read_packed(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", COLUMNS)
    path = packed(tmp_path / "a.parquet")
    assert not is_table(path)
    with pytest.raises(InputError, match=r"a\.parquet\.gz is not a file that ends in"):
        read_table(path)
    with pytest.raises(InputError, match="is a table of a kind that is not read"):
        is_table(tmp_path / "a.xlsx.gz")
    assert (file_kind(Path("x/.gz")), file_stem(Path("x/a.gz"))) == ("", "a")


def test_a_bomb_is_refused_before_it_has_grown(tmp_path: Path):
    """Of one byte a thousand; it is unpacked no further than to the limit, which holds in memory too."""
    pieces = 5 * ALWAYS // 2**20
    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        for _ in range(pieces):
            file.write(b"a" * 2**20)
    assert (tmp_path / "a.csv.gz").stat().st_size * MOST_GROWTH < pieces * 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read as csv: unpacked it has more than .* MiB"):
        read_table(tmp_path / "a.csv.gz")
    assert tracemalloc.get_traced_memory()[1] < 3 * ALWAYS
    tracemalloc.stop()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_a_damaged_file_is_refused_or_read_whole(tmp_path: Path, junk: bytes, chance: random.Random):
    content = b"text,label\n" + b"".join(b"ash %d,x\n" % n for n in range(50))
    data = gzip.compress(content)
    start = chance.randrange(len(data))
    damaged = chance.choice([data[:start], data[:start] + junk + data[start + len(junk) :], junk + data])
    path = tmp_path / "a.csv.gz"
    path.write_bytes(damaged)
    try:
        found = file_bytes(path)
    except ValueError as error:
        found = b"" if str(error).startswith("it is not a whole file of gzip (") else None
    assert found in (content, b"")


def test_a_plain_file_under_a_packed_name_is_named(tmp_path: Path):
    (tmp_path / "a.csv.gz").write_text("text,label\nash,x\n")
    with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read as csv: it is not a whole file of gzip \(Not a"):
        read_table(tmp_path / "a.csv.gz")
