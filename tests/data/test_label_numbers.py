"""Which number a label, a name of a list or a stratum gets, and the words for one that gets none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from fftmoe.data.labels import ALL, list_names, number_classes, number_strata
from fftmoe.data.sources import TRAIN_AND_TEST
from fftmoe.data.table import Table
from fftmoe.errors import InputError

EVALUATION = replace(TRAIN_AND_TEST, splits=("test",), label_names=("b", "a", "c"), evaluation=True)
SEVEN = tuple("abcdefg")


def tables(**labels: Sequence[str]) -> dict[str, Table]:
    return {split: Table.of(f"{split}.csv", {"label": list(own)}) for split, own in labels.items()}


def refused(words: str, made: Mapping[str, Table], **request: object) -> None:
    with pytest.raises(InputError, match=words):
        number_classes(made, "label", replace(TRAIN_AND_TEST, **request))


def test_classes_are_those_of_training_or_the_agreed_ones():
    made = tables(train="bab", test="ab")
    numbered, names = number_classes(made, "label")
    assert (numbered["train"].tolist(), numbered["test"].tolist(), names) == ([1, 0, 1], [0, 1], ("a", "b"))
    agreed = replace(TRAIN_AND_TEST, label_names=("c", "b", "a"))
    numbered, names = number_classes(made, "label", agreed)
    assert (numbered["train"].tolist(), names) == ([1, 2, 1], ("c", "b", "a"))


def test_one_class_is_enough_to_evaluate_on_and_not_to_train_on():
    refused(r"train.csv: column 'label' holds one label only \('a'\)", tables(train="aa", test="a"))
    number_classes(tables(train="ab", test="a"), "label")
    numbered, _ = number_classes(tables(test="aa"), "label", EVALUATION)
    assert numbered["test"].tolist() == [1, 1]
    only = replace(EVALUATION, label_names=("a",))
    assert number_classes(tables(test="aa"), "label", only)[0]["test"].tolist() == [0, 0]


def test_a_label_that_was_not_trained_is_named():
    with pytest.raises(
        InputError, match=r"test.csv has labels that the run was not trained on: d; the run knows b, a, c:"
    ):
        number_classes(tables(test="ad"), "label", EVALUATION)
    named = Table("test.csv", {"label": [0, 1]}, 2, {"label": ("a", "d")})  # named by the file, and in no row
    with pytest.raises(InputError, match="not trained on: d"):
        number_classes({"test": replace(named, columns={"label": [0, 0]})}, "label", EVALUATION)


def test_a_label_that_is_not_among_the_classes_is_counted():
    refused("test.csv: label 'c' occurs in 2 rows but never in training", tables(train="ab", test="acc"))
    refused(
        "train.csv: label 'c' occurs in 1 row and is not among the agreed labels a, b; ",
        tables(train="abc", test="a"),
        label_names=("a", "b"),
    )


@pytest.mark.parametrize(("names", "shown"), [(SEVEN[:5], "a, b, c, d, e;"), (SEVEN, "a, b, c, d, e, …;")])
def test_the_first_labels_are_named(names: tuple[str, ...], shown: str):
    refused(f"agreed labels {shown}", tables(train="abx", test="a"), label_names=names)


def test_rows_are_divided_by_the_first_column_that_all_have_or_not_at_all():
    made = {
        "train": Table.of("train.csv", {"kind": ["x", "y"], "site": ["s", "s"]}),
        "test": Table.of("test.csv", {"site": ["t", "s"]}),
    }
    numbered, names = number_strata(made, ["kind", "site"])
    assert (numbered["train"].tolist(), numbered["test"].tolist(), names) == ([0, 0], [1, 0], ("s", "t"))
    numbered, names = number_strata(made, ["kind"])
    assert (numbered["train"].tolist(), numbered["test"].tolist(), names) == ([0, 0], [0, 0], ALL)


def test_names_of_lists_are_those_of_training_or_the_agreed_ones():
    made = tables(train="ab", test="a")
    assert list_names(made, {"train": [["b", "a"], []], "test": [["a"]]}) == ("a", "b")
    agreed = replace(TRAIN_AND_TEST, label_names=("b", "a", "c"))
    assert list_names(made, {"train": [["b"]], "test": [["c"]]}, agreed) == ("b", "a", "c")


@pytest.mark.parametrize(("lists", "shown"), [([["a"], ["a"]], "only a occurs"), ([[], []], "only empty lists occurs")])
def test_lists_of_fewer_than_two_names_are_refused(lists: list[list[str]], shown: str):
    with pytest.raises(InputError, match=f"train.csv: {shown}"):
        list_names(tables(train="ab", test="a"), {"train": lists, "test": [[]]})


def test_a_name_that_training_lacks_is_named():
    with pytest.raises(InputError, match=r"test.csv: 'c' occurs here but never in training"):
        list_names(tables(train="ab", test="a"), {"train": [["a"], ["b"]], "test": [["a", "c"]]})
