"""Laws of what a run is bound to: equal things compare as equal, and every difference is found and has words."""

import csv
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.backbones import load_tokenizer
from fftmoe.data.read import read_folder
from fftmoe.data.rows_digest import digest_of_rows
from fftmoe.data.tokens import tokenize_texts
from fftmoe.rng import numpy_generator
from fftmoe.store.bindings import BINDING_KINDS, differences

values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=7,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), values), st.dictionaries(st.sampled_from(["a", "b"]), values))
def test_recipes_that_differ_are_told_apart_and_equal_ones_are_not(one: dict[str, Any], two: dict[str, Any]):
    def without_none(value: Any) -> Any:
        """A key without a value means the same as no key."""
        if isinstance(value, dict):
            return {key: without_none(item) for key, item in value.items() if item is not None}
        return [without_none(item) for item in value] if isinstance(value, list) else value

    assert differences({"recipe": one}, {"recipe": one}) == []
    one, two = without_none(one), without_none(two)
    assert bool(differences({"recipe": one}, {"recipe": two})) == (
        json.dumps(one, sort_keys=True) != json.dumps(two, sort_keys=True)
    )


@given(st.permutations(["a", "b", "c", "d"]), st.permutations(["a", "b", "c", "d"]))
def test_another_order_of_clients_is_another_population(one: list[str], two: list[str]):
    found = differences({"population": {"clients": 4, "names": one}}, {"population": {"clients": 4, "names": two}})
    assert bool(found) == (one != two)
    assert all(not difference.acceptable and "was client" in difference.words for difference in found)


def test_every_kind_has_words_for_a_person():
    examples: dict[str, tuple[Any, Any]] = {
        "recipe": ({"a": 1}, {"a": 2}),
        "arithmetic": ({"precision": "float32"}, {"precision": "bfloat16"}),
        "privacy": ("sums", "examples"),
        "labels": (["a"], ["b"]),
        "population": ({"clients": 1}, {"clients": 2}),
        "division": ("a", "b"),
        "keys": ({"site": "a"}, {"site": "b"}),
        "training rows": ({"rows": 1, "sha256": "a"}, {"rows": 1, "sha256": "b"}),
        "test rows": ({"rows": 1, "sha256": "a"}, {"rows": 2, "sha256": "b"}),
        "owners of test rows": ({"rows": 2, "sha256": "a"}, {"rows": 2, "sha256": "b"}),
        "tokenizer": ("a", "b"),
        "backbone": ("a", "b"),
        "start": ("a", "b"),
        "versions": ({"torch": "1"}, {"torch": "2"}),
    }
    assert examples.keys() == BINDING_KINDS.keys()
    for name, (then, now) in examples.items():
        (found,) = differences({name: then}, {name: now})
        assert found.words[:4] in ("the ", "site")


def test_no_cell_of_a_table_changes_without_its_digest(tmp_path: Path, backbone_folder: Path):
    """Each change of one cell, of an order or of a length gives another digest, and a column beside gives the same."""
    random = numpy_generator(5, "cells")
    rows = [[f"{'ab'[int(random.integers(2))]} {i}", "xy"[i % 2], str(i)] for i in range(11)]
    tokenizer = load_tokenizer(str(backbone_folder))

    def found(rows: list[list[str]]) -> str:
        with (tmp_path / "train.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label", "beside"], *rows])
        table = read_folder(tmp_path, ("train",))["train"]
        texts = tuple(table.columns["text"])
        examples = tokenize_texts(texts, torch.zeros(len(texts), dtype=torch.int64).numpy(), tokenizer, 5)
        return digest_of_rows(table, ["text", "label"], examples).sha256

    seen = [found(rows)]
    for row in range(11):
        for column in (0, 1):
            changed = [list(values) for values in rows]
            changed[row][column] += "!"
            seen.append(found(changed))
    seen += [found(rows[::-1]), found(rows[:-1]), found([*rows, rows[0]])]
    assert len(set(seen)) == len(seen)
    beside = [[text, label, "7"] for text, label, _ in rows]
    assert found(beside) == seen[0]


LABELS_AS_READ = {  # by the type in parquet: what a cell of CSV says, and the value
    "whole numbers": (["1", "-7", "0"], [1, -7, 0]),
    "truth values": (["true", "false", "true"], [True, False, True]),
    "days": (["2020-12-31", "1970-01-01", "2020-12-31"], [date(2020, 12, 31), date(1970, 1, 1), date(2020, 12, 31)]),
    "texts": (["01", "NA", "x"], ["01", "NA", "x"]),
    "classes": (["b", "a", "b"], datasets.ClassLabel(names=["a", "b"])),
    "none": (["x", "", "x"], ["x", None, "x"]),
}


def digest_of(folder: Path, tokenizer: Any, numbers: Sequence[str] = ()) -> str:
    table = read_folder(folder, ("train",))["train"]
    examples = tokenize_texts(tuple(table.columns["text"]), np.zeros(3, dtype=np.int64), tokenizer, 5)
    return digest_of_rows(table, ["text", "label"], examples, numbers).sha256


def written(folder: Path, suffix: str, labels: Sequence[Any], features: datasets.Features | None = None) -> Path:
    """A folder with these labels in a file of this kind."""
    folder.mkdir()
    texts = ["red", "ash", "cod"]
    if suffix == "csv":
        with (folder / "train.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *zip(texts, labels, strict=True)])
    elif suffix == "jsonl":
        rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        datasets.Dataset.from_dict({"text": texts, "label": labels}, features).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("kind", LABELS_AS_READ)
def test_the_same_names_have_the_same_digest_in_every_format(kind: str, tmp_path: Path, backbone_folder: Path):
    cells, values = LABELS_AS_READ[kind]
    tokenizer = load_tokenizer(str(backbone_folder))
    features = None
    if isinstance(values, datasets.ClassLabel):
        features = datasets.Features({"text": datasets.Value("string"), "label": values})
        values = [values.names.index(cell) for cell in cells]
    elif kind != "days":
        assert digest_of(written(tmp_path / "json", "jsonl", values), tokenizer) == digest_of(
            written(tmp_path / "csv", "csv", cells), tokenizer
        )
    found = digest_of(written(tmp_path / "parquet", "parquet", values, features), tokenizer)
    assert found == digest_of(written(tmp_path / "again", "csv", cells), tokenizer)
    assert found != digest_of(written(tmp_path / "other", "csv", [*cells[:2], "y"]), tokenizer)


def test_the_same_numbers_have_the_same_digest_in_every_format(tmp_path: Path, backbone_folder: Path):
    tokenizer, numbers = load_tokenizer(str(backbone_folder)), ("label",)
    found = {
        digest_of(written(tmp_path / "a", "csv", ["1", "2.50", "-1e3"]), tokenizer, numbers),
        digest_of(written(tmp_path / "b", "jsonl", [1, 2.5, -1000]), tokenizer, numbers),
        digest_of(written(tmp_path / "c", "parquet", [1.0, 2.5, -1000.0]), tokenizer, numbers),
    }
    assert len(found) == 1
    assert found != {digest_of(written(tmp_path / "d", "csv", ["1", "2.5", "-1e4"]), tokenizer, numbers)}
