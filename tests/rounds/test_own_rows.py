"""A client's own accuracy: on its own test rows where these name it, and else reweighted, under another name."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fftmoe
from fftmoe.config import parse_recipe
from fftmoe.data import own_rows
from fftmoe.errors import InputError
from fftmoe.setup.asked import evaluate_run
from fftmoe.setup.run import resume, run
from finished import Finished
from five_clients import changed

NATURAL = {"kind": "natural", "by": "author"}
ONE_TIER = [{"name": "all", "fraction": 1.0, "top_k": 1, "experts": 5}]


@pytest.fixture(scope="module")
def rewritten(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The tiny data with other clients in its test rows: from (place, client) to another, or None for no column."""

    def make(owner: Callable[[int, str], str | None]) -> Path:
        folder = tmp_path_factory.mktemp("rewritten")
        shutil.copy(data_folder / "train.csv", folder)
        with (data_folder / "test.csv").open(newline="") as file:
            rows = [{**row, "author": owner(place, row["author"])} for place, row in enumerate(csv.DictReader(file))]
        names = ["text", "label", *(["author"] if rows[0]["author"] is not None else [])]
        with (folder / "test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return make


@pytest.fixture(scope="module")
def finish(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Finished]:
    """Runs the tiny recipe with a client for each author and one tier."""

    def call(source: Path, **changes: Any) -> Finished:
        folder = tmp_path_factory.mktemp("natural") / "run"
        values = changed(recipe_values, partition=NATURAL, budgets=ONE_TIER, data__source=str(source), **changes)
        run(parse_recipe(changed(values, federation__clients_per_round=3, trackers=[]), "tiny"), folder)
        return Finished(folder)

    return call


def by_author(finished: Finished, source: Path) -> dict[str, float]:
    """The accuracy of the saved model on the test rows of each author, computed from its answers."""
    with (source / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = fftmoe.predict(finished.folder, [row["text"] for row in rows])
    right = [(row["author"], answer["label"] == row["label"]) for row, answer in zip(rows, answers, strict=True)]
    return {name: float(np.mean([is_right for own, is_right in right if own == name])) for name, _ in right}


def test_a_clients_accuracy_is_that_on_its_own_test_rows(data_folder: Path, finish: Callable[..., Finished]):
    finished = finish(data_folder, evaluation={"baselines": ["alone"]})
    clients, expected = finished.summary["clients"], by_author(finished, data_folder)
    assert clients["name"] == ["author-0", "author-1", "author-2", "author-3"]
    assert dict(zip(clients["name"], clients["accuracy"], strict=True)) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected.values())) > 1
    assert evaluate_run(finished.folder)["accuracy_by_client"] == pytest.approx(expected)
    assert finished.summary["client_accuracy"]["mean"] == pytest.approx(np.mean([*expected.values()]))
    assert len(clients["alone"]) == 4
    assert "reweighted_accuracy" not in finished.summary


def test_a_client_whose_labels_are_everyones_but_whose_rows_are_not(
    rewritten: Callable[..., Path], finish: Callable[..., Finished]
):
    """Rows that the model gets wrong are all given to one client: its accuracy is 0, whatever its labels are."""
    plain = finish(rewritten(lambda place, author: author))
    with (rewritten(lambda place, author: author) / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = fftmoe.predict(plain.folder, [row["text"] for row in rows])
    wrong = {place for place, row in enumerate(rows) if answers[place]["label"] != row["label"]}
    assert 0 < len(wrong) < len(rows)
    source = rewritten(lambda place, _: "author-0" if place in wrong else f"author-{1 + place % 3}")
    clients = finish(source).summary["clients"]
    assert clients["accuracy"] == [0.0, 1.0, 1.0, 1.0]


def test_test_rows_without_the_column_are_reweighted_and_the_name_says_so(
    rewritten: Callable[..., Path], finish: Callable[..., Finished]
):
    finished = finish(rewritten(lambda place, author: None), evaluation={"local_only": True, "baselines": "off"})
    summary, page = finished.summary, (finished.folder / "report.html").read_text()
    assert {"reweighted_accuracy", "reweighted_local_only_accuracy"} <= summary.keys()
    assert not {"client_accuracy", "local_only_client_accuracy"} & summary.keys()
    assert {"name", "tier", "reweighted_accuracy"} <= summary["clients"].keys()
    assert "reweighted to each client" in page
    assert "own test rows" not in page


def test_rows_of_nobody_and_clients_without_rows_are_counted_and_told(
    rewritten: Callable[..., Path], finish: Callable[..., Finished]
):
    """A blank cell, and a client that has no training rows; one client has no test rows."""
    strange = {0: "", 1: "  ", 2: "author-9"}
    source = rewritten(lambda place, author: strange.get(place, "author-1" if author == "author-0" else author))
    summary = finish(source).summary
    assert any("no client of the training rows has 3 of 41 test rows" in note for note in summary["notes"])
    assert any("no test rows of their own for 1 of 4 clients" in note for note in summary["notes"])
    assert [value is None for value in summary["clients"]["accuracy"]] == [True, False, False, False]


def test_test_rows_of_other_clients_only_are_reweighted(
    rewritten: Callable[..., Path], finish: Callable[..., Finished]
):
    summary = finish(rewritten(lambda place, author: f"new-{author}")).summary
    assert "reweighted_accuracy" in summary
    assert any("no test row belongs to a client of the training rows" in note for note in summary["notes"])


def test_a_subset_of_the_test_rows_keeps_their_owners(data_folder: Path, finish: Callable[..., Finished]):
    whole = finish(data_folder).summary
    some = finish(data_folder, data__test_examples=40).summary
    assert some["clients"]["name"] == whole["clients"]["name"]
    changes = [abs(a - b) for a, b in zip(some["clients"]["accuracy"], whole["clients"]["accuracy"], strict=True)]
    assert sum(change > 0 for change in changes) <= 1  # one row less, of one client
    held = finish(data_folder, data__validation_examples=29).summary
    assert "client_accuracy" in held  # training rows name their clients in any case


def test_clients_own_models_are_measured_on_their_own_rows(data_folder: Path, finish: Callable[..., Finished]):
    summary = finish(data_folder, evaluation={"personal": True, "baselines": "off"}).summary
    assert summary["personal_accuracy"]["global_mean"] == pytest.approx(summary["client_accuracy"]["mean"])
    assert "reweighted_personal_accuracy" not in summary


def test_a_run_is_bound_to_the_owners_of_its_test_rows(
    recipe_values: dict[str, Any], rewritten: Callable[..., Path], tmp_path: Path
):
    from interrupting import Killed, interrupt

    source = rewritten(lambda place, author: author)
    values = changed(recipe_values, partition=NATURAL, data__source=str(source), federation__clients_per_round=3)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "before the row", 2)
        with pytest.raises(Killed):
            run(parse_recipe({**values, "evaluation": {"baselines": "off"}}, "tiny"), tmp_path / "run")
    shutil.copy(rewritten(lambda place, author: f"author-{place % 3}") / "test.csv", source / "test.csv")
    with pytest.raises(InputError, match="belong to other clients than then"):
        resume(tmp_path / "run")


def test_rows_are_given_to_clients_by_name():
    rows = own_rows(("a", "b", "c"), ["c", None, "a", "x", "c"])
    assert rows is not None
    assert [own.tolist() for own in rows] == [[2], [], [0, 4]]
    assert own_rows(("a",), ["x", None]) is None
