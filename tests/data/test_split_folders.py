"""Which files and folders of a data folder are its splits, and which are not."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fftmoe.data.read import not_read, read_folder, split_of, tables_in
from fftmoe.errors import InputError
from tables import write_csv


def write(folder: Path, name: str, *texts: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"text": list(texts or ("a", "b"))}
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.table(columns), path)
    else:
        write_csv(path, columns)


def texts_in(folder: Path) -> dict[str, list[str]]:
    return {split: list(table.columns["text"]) for split, table in read_folder(folder, ()).items()}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("Test.CSV", "test"),
        ("dev", "dev"),
        ("train-00001-of-00002.parquet", "train"),
        ("north-00001-of-00002.parquet", None),
        ("my_train.csv", None),
        ("training-1.csv", None),
    ],
)
def test_a_name_says_which_split_a_file_is(name: str, split: str | None):
    assert split_of(Path(name)) == split


def test_tables_are_files_that_are_read_and_not_hidden(tmp_path: Path):
    for name in ("b.csv", "a.TSV", ".hidden.csv", "notes.md", "about.json"):
        (tmp_path / name).touch()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "lost.csv").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in tables_in(tmp_path)] == ["a.TSV", "b.csv", "lost.csv"]
    (tmp_path / "json").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "json" / name).touch()
    assert [path.name for path in tables_in(tmp_path / "json")] == ["a.json", "b.json"]


def test_a_split_is_a_file_or_all_of_its_parts(tmp_path: Path):
    write(tmp_path, "train-00000-of-00002.csv", "a", "b")
    write(tmp_path, "train-00001-of-00002.csv", "c")
    write(tmp_path, "test.csv", "d")
    write(tmp_path, "test-00000-of-00007.csv", "e")  # the file is the split
    write(tmp_path, "other-00000-of-00001.csv", "f")
    assert texts_in(tmp_path) == {"train": ["a", "b", "c"], "test": ["d"]}
    write(tmp_path, "test.tsv", "d")
    with pytest.raises(InputError, match=r"holds both test\.csv and test\.tsv: keep one"):
        read_folder(tmp_path)


def test_the_names_of_splits_and_their_parts_may_have_capitals(tmp_path: Path):
    write(tmp_path, "a/Train-00000-of-00002.csv", "a", "b")
    write(tmp_path, "a/TRAIN-00001-OF-00002.csv", "c")
    write(tmp_path, "a/Test.CSV", "d")
    assert texts_in(tmp_path / "a") == {"train": ["a", "b", "c"], "test": ["d"]}
    for client in ("north", "south"):
        write(tmp_path, f"b/Train/{client}.csv", client)
        write(tmp_path, f"c/{client}/Train.csv", client)
        write(tmp_path, f"c/{client}/TEST.csv", client)
    assert texts_in(tmp_path / "b") == {"train": ["north", "south"]}
    assert texts_in(tmp_path / "c") == {"train": ["north", "south"], "test": ["north", "south"]}
    for twice in ("Train-00000-of-00002.csv", "train-00000-of-00002.csv"):
        write(tmp_path, f"d/{twice}", "a")
    with pytest.raises(InputError, match="and not each of the 2 parts once"):
        read_folder(tmp_path / "d", ())
    for twice in ("Train.csv", "train.csv"):
        write(tmp_path, f"e/{twice}", "a")
    with pytest.raises(InputError, match=r"holds both Train\.csv and train\.csv: keep one"):
        read_folder(tmp_path / "e", ())


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.csv"],
        ["train-00001-of-00002.csv", "train-00002-of-00002.csv"],
        ["train-00000-of-00002.csv", "train-00000-of-00002.tsv"],
        ["train-00000-of-00002.csv", "train-00001-of-00003.csv"],
        ["train-00000-of-00003.csv", "train-00001-of-00003.csv"],
    ],
)
def test_a_part_that_is_missing_or_there_twice_is_refused(tmp_path: Path, names: list[str]):
    for name in names:
        write(tmp_path, name)
    with pytest.raises(InputError, match=rf"holds {len(names)} parts? such as .*, and not each of the \d parts once"):
        read_folder(tmp_path, ())


def test_a_folder_of_a_split_holds_images_or_tables_of_clients(tmp_path: Path):
    write(tmp_path, "train/north.csv", "a")
    write(tmp_path, "train/south.csv", "b", "c")
    write(tmp_path, "test/north.csv", "d")  # the only client with test rows of its own
    found = read_folder(tmp_path, ())
    assert {name: table.columns["client"] for name, table in found.items()} == {
        "train": ["north", "south", "south"],
        "test": ["north"],
    }
    for label in ("x", "y"):
        path = tmp_path / "validation" / label / "one.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((3, 5, 3), dtype=np.uint8)).save(path)
    assert read_folder(tmp_path, ())["validation"].columns["label"] == ["x", "y"]


def test_a_table_alone_in_the_folder_of_a_split_is_the_split(tmp_path: Path):
    for split, texts in {"train": ("a", "b"), "Test": ("c",), "validation": ("d",)}.items():
        write(tmp_path, f"{split}/data.csv", *texts)
    found = read_folder(tmp_path)
    assert {name: table.columns for name, table in found.items()} == {
        "train": {"text": ["a", "b"]},
        "test": {"text": ["c"]},
        "validation": {"text": ["d"]},
    }


@pytest.mark.parametrize(
    "parts",
    [
        ["train-00000-of-00002.csv", "train-00001-of-00002.csv"],
        ["0000.parquet", "0001.parquet"],
    ],
)
def test_the_parts_of_a_split_may_lie_in_its_folder(tmp_path: Path, parts: list[str]):
    for name, text in zip(parts, "ab", strict=True):
        write(tmp_path, f"train/{name}", text)
    write(tmp_path, f"test/{parts[0].replace('train', 'test').replace('00002', '00001')}", "c")
    found = read_folder(tmp_path)
    assert {name: table.columns for name, table in found.items()} == {
        "train": {"text": ["a", "b"]},
        "test": {"text": ["c"]},
    }


@pytest.mark.parametrize(
    "names", [["0000.parquet", "0002.parquet"], ["0.parquet", "1.parquet"], ["0000.csv", "0001.csv"]]
)
def test_other_numbers_are_clients(tmp_path: Path, names: list[str]):
    for name in names:
        write(tmp_path, f"train/{name}", "a")
    assert read_folder(tmp_path, ())["train"].columns["client"] == [name.partition(".")[0] for name in names]


def test_two_folders_with_training_rows_are_clients(tmp_path: Path):
    write(tmp_path, "north/train.csv", "a")
    assert texts_in(tmp_path) == {}
    write(tmp_path, ".copy/train.csv", "a")  # of nobody
    assert texts_in(tmp_path) == {}
    write(tmp_path, "south/train.csv", "b")
    write(tmp_path, "south/test.csv", "c")
    write(tmp_path, "west/test.csv", "d")  # no training rows, so it is no client
    (tmp_path / "notes.md").touch()
    assert texts_in(tmp_path) == {"train": ["a", "b"], "test": ["c"]}
    assert read_folder(tmp_path)["train"].columns["client"] == ["north", "south"]
    write(tmp_path, "test.csv", "e")  # the folder has a split itself
    assert texts_in(tmp_path) == {"test": ["e"]}


def test_a_file_that_was_meant_to_be_a_split_is_named(tmp_path: Path):
    assert not_read(tmp_path / "nowhere", {"train"}) == ""
    (tmp_path / "train.csv.zip").touch()
    (tmp_path / "test.zip").mkdir()
    (tmp_path / "notes.txt").touch()
    assert not_read(tmp_path, ()) == ""
    assert not_read(tmp_path, {"test"}) == ""
    assert not_read(tmp_path, {"train", "test"}).startswith(", whose train.csv.zip is not read (unpack it")
    with pytest.raises(InputError, match=r"whose train\.csv\.zip is not read .* has no train and no test split"):
        read_folder(tmp_path)
