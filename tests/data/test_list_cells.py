"""Several labels, or tokens and tags, in one cell: lists where a recipe states what divides them, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fftmoe.config import load_recipe
from fftmoe.data import SplitRequest
from fftmoe.data.list_cells import ListCells
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fftmoe.setup.splits import load_splits
from shared_fixtures import Cli, assert_refused
from tables import write_csv, write_jsonl

ITEMS = st.text(st.characters(codec="utf-8", exclude_characters=";"), min_size=1).filter(
    lambda text: text == text.strip()
)
SIGNS = [["fever", "cough"], ["fever"], [], ["cough", "rash"], ["rash"]] * 6
NOTES = [f"ash bay {row}" for row in range(len(SIGNS))]


@given(st.lists(st.lists(ITEMS)), st.sampled_from([";", "; ", " ; ", ";;"]))
def test_items_that_are_joined_are_divided_again(lists: list[list[str]], joined_by: str):
    cells = [joined_by.join(own) for own in lists]
    table = Table("a.csv", {"label": cells, "text": cells}, len(cells))
    read = ListCells(["label", "absent"], ";").read(table)
    assert list(read.columns["label"]) == lists
    assert read.columns["text"] == cells


def test_what_is_no_text_stays_as_it_is():
    values: list[Any] = [["a;b"], None, 3, "a; ;b;"]
    read = ListCells(["label"], ";").read(Table("a.jsonl", {"label": values}, 4))
    assert read.columns["label"] == [["a;b"], None, 3, ["a", "b"]]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(len(SIGNS))))
def test_cells_and_lists_of_the_same_items_are_the_same_data(tmp_path: Path, backbone_folder: Path, order: list[int]):
    write_csv(tmp_path / "a.csv", {"text": NOTES, "label": [";".join(SIGNS[row]) for row in order]})
    write_jsonl(tmp_path / "a.jsonl", {"text": NOTES, "label": [SIGNS[row] for row in order]})
    found = []
    for name, stated in (("a.csv", {"list_separator": ";"}), ("a.jsonl", {})):
        data = {"source": str(tmp_path / name), **stated}
        recipe = load_recipe({"data": data, "backbone": {"model": str(backbone_folder)}})
        assert recipe.backbone.task == "multi-label-classification"
        splits = load_splits(recipe, str(tmp_path / name), SplitRequest())
        found.append((splits.rows, splits.label_names, recipe.data.label, recipe.data.text))
    assert found[0] == found[1]
    assert found[0][1] == ("cough", "fever", "rash")


def test_tokens_and_tags_may_be_cells_too(tmp_path: Path, backbone_folder: Path):
    columns = {"words": ["ash bay cod"] * 12, "ner_tags": ["O B O"] * 12}
    write_csv(tmp_path / "a.csv", columns)
    data = {"source": str(tmp_path / "a.csv"), "list_separator": " "}
    recipe = load_recipe({"data": data, "backbone": {"model": str(backbone_folder)}})
    assert (recipe.backbone.task, recipe.data.tokens, recipe.data.tags) == ("token-classification", "words", "ner_tags")
    assert load_splits(recipe, recipe.data.source, SplitRequest()).label_names == ("B", "O")


def test_without_the_key_a_cell_is_one_label_and_with_it_another_task_is_refused(tmp_path: Path, backbone_folder: Path):
    write_csv(tmp_path / "a.csv", {"text": NOTES, "label": ["a;b", "b;a", "a"] * 10})
    plain = {"data": {"source": str(tmp_path / "a.csv")}, "backbone": {"model": str(backbone_folder)}}
    recipe = load_recipe(plain)
    assert recipe.backbone.task == "sequence-classification"
    assert load_splits(recipe, recipe.data.source, SplitRequest()).label_names == ("a", "a;b", "b;a")
    several = load_recipe(plain, ["backbone.task=multi-label-classification"])
    with pytest.raises(InputError, match=r"not a list of names; .* if data\.list_separator says what divides them"):
        load_splits(several, recipe.data.source, SplitRequest())
    with pytest.raises(
        InputError, match=r"data\.list_separator=';' divides cells into lists, which backbone\.task=seq"
    ):
        load_recipe(plain, ["backbone.task=sequence-classification", "data.list_separator=';'"])
    named = load_recipe(plain, ["data.text=text", "data.label=label", "data.list_separator=';'"])
    assert named.backbone.task == "multi-label-classification"


def test_init_writes_the_separator_and_the_recipe_runs(
    cli: Cli, backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    signs = [own or ["rash"] for own in SIGNS]
    write_csv(tmp_path / "a.csv", {"note": NOTES, "signs": ["|".join(own) for own in signs]}, ";")
    model = ("--model", backbone_folder)
    outcome = cli("init", "a.csv", "--list-separator", "|", "--label", "signs", *model)
    assert outcome.status == 0, outcome.err
    assert "multi-label-classification" in outcome.out
    assert yaml.safe_load(Path("mine.yaml").read_text())["data"]["list_separator"] == "|"
    run = cli("run", "mine.yaml", "--output", "r", "--set", "federation.rounds=1", "--set", "engine.workers=1")
    assert run.status == 0, run.err
    measured = cli("evaluate", "r", "--data", "a.csv")
    assert measured.status == 0, measured.err
    guessed = cli("init", "a.csv", "--list-separator", "|", "--output", "b.yaml", *model)
    assert "guessed: multi-label-classification, text in column 'note', label in column 'signs'" in guessed.out
    refused = cli("init", "a.csv", "--list-separator", "/", "--output", "c.yaml", *model)
    assert_refused(refused, "no column holds data.list_separator='/' between names that repeat", "--label")
    write_csv(tmp_path / "d.csv", {"note": NOTES, "signs": ["ash; bay", "bay; cod", "cod"] * 10})
    told = cli("init", "d.csv", "--label", "signs", "--output", "d.yaml", *model)
    assert "hold ';', and each cell is one label; if it holds several: --list-separator ';'" in told.out


CELLS = ["|".join(own) for own in SIGNS]
PLACES = [f"p{row % 3}" for row in range(len(SIGNS))]


@pytest.mark.parametrize("name", ["tags", "topics", "labels", "signs"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_column_of_lists_without_tokens_holds_several_labels(
    tmp_path: Path, backbone_folder: Path, name: str, stated: bool
):
    """Whatever it is called, in cells and in lists; and the name that a person states goes before all others."""
    named = {"label": name} if stated else {}
    columns = {"ticket": NOTES, "office": PLACES, name: SIGNS, "tags": SIGNS}
    write_jsonl(tmp_path / "a.jsonl", {key: columns[key] for key in ("ticket", "office", name)})  # type: ignore[misc]
    write_csv(tmp_path / "a.csv", {"ticket": NOTES, "office": PLACES, name: CELLS})
    for file, separator in (("a.csv", {"list_separator": "|"}), ("a.jsonl", {})):
        data = {"source": str(tmp_path / file), **separator, **named}
        values = {"data": data, "backbone": {"model": str(backbone_folder)}, "partition": {"by": "office"}}
        recipe = load_recipe(values)
        assert (recipe.backbone.task, recipe.data.label) == ("multi-label-classification", name)
        assert load_splits(recipe, recipe.data.source, SplitRequest()).label_names == ("cough", "fever", "rash")


def test_a_label_that_is_named_goes_before_tokens_and_tags_of_usual_names(tmp_path: Path, backbone_folder: Path):
    words = ["ash bay cod"] * len(SIGNS)
    write_csv(tmp_path / "a.csv", {"text": NOTES, "words": words, "tags": words, "signs": CELLS})
    data = {"source": str(tmp_path / "a.csv"), "list_separator": "|", "label": "signs"}
    recipe = load_recipe({"data": data, "backbone": {"model": str(backbone_folder)}})
    assert (recipe.backbone.task, recipe.data.label) == ("multi-label-classification", "signs")


def test_a_sentence_with_as_many_words_as_tags_holds_the_tokens(tmp_path: Path, backbone_folder: Path):
    columns = {"sentence": ["ash bay cod", "bay dew"] * 12, "tags": ["O B O", "B O"] * 12, "site": [*"xyz"] * 8}
    write_csv(tmp_path / "a.csv", columns)
    data = {"source": str(tmp_path / "a.csv"), "list_separator": " "}
    recipe = load_recipe({"data": data, "backbone": {"model": str(backbone_folder)}, "partition": {"by": "site"}})
    assert (recipe.backbone.task, recipe.data.tokens, recipe.data.tags) == ("token-classification", "sentence", "tags")
