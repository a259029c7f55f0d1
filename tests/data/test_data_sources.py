import csv
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from fftmoe.errors import InputError
from reading import read_labelled_texts

TRAIN = [("good film", "pos", 3), ("bad, bad film", "neg", 1), ("null", "pos", 3), ('she said "no"', "neg", 2)]
TEST = [("a second\nline", "neg", 1), ("123", "pos", 2)]


def write(folder: Path, split: str, rows: list[tuple[Any, Any, Any]], suffix: str = "jsonl") -> None:
    folder.mkdir(exist_ok=True)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("text", "label", "author"))}
    path = str(folder / f"{split}.{suffix}")
    if suffix == "jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        Path(path).write_text("\n".join(lines) + "\n")
    elif suffix == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([tuple(columns), *rows])
    else:
        datasets.Dataset.from_dict(columns).to_parquet(path)


@pytest.fixture(autouse=True)
def no_progress_bars():
    # Only this module's own writing would show them; the code under test switches its own off.
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_every_file_format_gives_the_same_data(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]):
    write(tmp_path, "train", TRAIN, suffix)
    write(tmp_path, "test", TEST, suffix)
    capfd.readouterr()
    data = read_labelled_texts(str(tmp_path), extra_columns=["author"])
    assert capfd.readouterr() == ("", "")
    assert data.label_names == ("neg", "pos")
    assert list(data.splits) == ["train", "test"]
    train, test = data.splits["train"], data.splits["test"]
    assert train.content == tuple(row[0] for row in TRAIN)
    assert test.content == tuple(row[0] for row in TEST)
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert test.labels.tolist() == [0, 1]
    assert train.columns == {"author": ["3", "1", "3", "2"]}
    assert len(train) == 4


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_numbers_as_labels_are_sorted_as_numbers(tmp_path: Path, suffix: str):
    rows = [("some text", label, 0) for label in (10, 9, 100)]
    write(tmp_path, "train", rows, suffix)
    write(tmp_path, "test", rows, suffix)
    assert read_labelled_texts(str(tmp_path)).label_names == ("9", "10", "100")


def test_class_labels_keep_names_and_validation_is_read(tmp_path: Path):
    features = datasets.Features({"q": datasets.Value("string"), "y": datasets.ClassLabel(names=["zoo", "art"])})
    for split in ("train", "test", "validation"):
        rows = datasets.Dataset.from_dict({"q": ["one", "two"], "y": [0, 1]}, features=features)
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    data = read_labelled_texts(str(tmp_path), text="q", label="y")
    assert data.label_names == ("zoo", "art")
    assert data.splits["validation"].labels.tolist() == [0, 1]


def test_a_changed_file_is_read_anew(tmp_path: Path):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, "test", TEST)
    read_labelled_texts(str(tmp_path))
    write(tmp_path, "test", TEST[:1])
    assert len(read_labelled_texts(str(tmp_path)).splits["test"]) == 1


def broken(folder: Path, **changes: list[tuple[Any, Any, Any]]) -> str:
    """A good folder but for the splits in `changes`."""
    for split, rows in {"train": TRAIN, "test": TEST, **changes}.items():
        write(folder, split, rows)
    return str(folder)


def test_missing_column_lists_the_columns(tmp_path: Path):
    with pytest.raises(
        InputError, match=r"train\.jsonl has no column 'texts'; did you mean 'text'\?; it has text, label, author: name"
    ):
        read_labelled_texts(broken(tmp_path), text="texts")
    with pytest.raises(InputError, match="no column 'writer'; it has text, label, author: name"):
        read_labelled_texts(str(tmp_path), extra_columns=["writer"])


def test_label_unseen_in_training(tmp_path: Path):
    rows = [*TEST, ("meh", "mixed", 1), ("hm", "mixed", 1)]
    with pytest.raises(InputError, match=r"test\.jsonl: label 'mixed' occurs in 2 rows but never in training"):
        read_labelled_texts(broken(tmp_path, test=rows))


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_empty_text(tmp_path: Path, text: str | None):
    with pytest.raises(InputError, match=r"test\.jsonl: column 'text' is empty in row 3"):
        read_labelled_texts(broken(tmp_path, test=[*TEST, (text, "pos", 1)]))


@pytest.mark.parametrize("label", ["", None])
def test_empty_label(tmp_path: Path, label: str | None):
    with pytest.raises(InputError, match=r"train\.jsonl: column 'label' has no label in row 5"):
        read_labelled_texts(broken(tmp_path, train=[*TRAIN, ("fine", label, 1)]))


def test_unlabelled_class_label(tmp_path: Path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zoo", "art"])})
    for split, labels in {"train": [0, 1], "test": [1, -1]}.items():
        rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}, features=features)
        rows.to_parquet(str(tmp_path / f"{split}.parquet"))
    with pytest.raises(InputError, match=r"test\.parquet: column 'label' has no label in row 2 \(value -1\)"):
        read_labelled_texts(str(tmp_path))


def test_columns_of_the_wrong_type(tmp_path: Path):
    with pytest.raises(InputError, match="column 'author' holds int values such as 3"):
        read_labelled_texts(broken(tmp_path), text="author")
    rows = [("a", 0.5, 0), ("b", 1.5, 0)]
    with pytest.raises(InputError, match=r"column 'label' holds float values such as 0\.5"):
        read_labelled_texts(broken(tmp_path, train=rows, test=rows))


def test_a_single_label_is_nothing_to_classify(tmp_path: Path):
    with pytest.raises(InputError, match="holds one label only"):
        read_labelled_texts(broken(tmp_path, train=[("a", "pos", 0)], test=[("a", "pos", 0)]))


def test_folder_without_test(tmp_path: Path):
    write(tmp_path, "train", TRAIN)
    with pytest.raises(
        InputError, match=r"has no test split \(it has train\); .* add test\.parquet \(or \.csv, \.jsonl\)"
    ):
        read_labelled_texts(str(tmp_path))


def test_empty_folder_and_ambiguous_folder(tmp_path: Path):
    with pytest.raises(InputError, match="has no train and no test split"):
        read_labelled_texts(str(tmp_path))
    write(tmp_path, "train", TRAIN, "csv")
    write(tmp_path, "train", TRAIN, "jsonl")
    with pytest.raises(InputError, match=r"holds both train\.csv and train\.jsonl"):
        read_labelled_texts(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", b'text,label\n"a,1\n2,3,4\n'),
        ("train.csv", b"text,label\n\xff\xfe\xfa,1\n"),
        ("train.csv", b""),
        ("train.jsonl", b'{"text": "a"\n'),
        ("train.parquet", b"PAR1 nonsense"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    write(tmp_path, "test", TEST)
    with pytest.raises(
        InputError,
        match=rf"(?s){name} cannot be read as {name.split('.')[1]}: .+; (correct the file|as windows-1251 it reads)",
    ):
        read_labelled_texts(str(tmp_path))


def test_file_without_rows(tmp_path: Path):
    write(tmp_path, "train", TRAIN)
    (tmp_path / "test.csv").write_text("text,label\n")
    with pytest.raises(InputError, match=r"test\.csv has no rows"):
        read_labelled_texts(str(tmp_path))


def test_source_names_that_are_nothing(tmp_path: Path):
    with pytest.raises(InputError, match=r"not a builtin data set; did you mean 'stdlib-docs'\?"):
        read_labelled_texts("builtin:stdlib-doc")
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        read_labelled_texts(str(tmp_path / "missing"))
    (tmp_path / "notes.txt").write_text("text\n")
    with pytest.raises(InputError, match=r"notes\.txt is not a file that ends in \.parquet, \.csv, \.tsv"):
        read_labelled_texts(str(tmp_path / "notes.txt"))
