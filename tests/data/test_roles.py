"""A column keeps its role whatever single values it holds, so that the message about a value names its row."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.backbones import BUILTIN_MINILM
from fftmoe.config.facts import read_facts
from fftmoe.config.text_lengths import Reading, long_text
from fftmoe.data.columns import labels_of, texts_of
from fftmoe.data.roles import LABEL, TEXT, guess_roles
from fftmoe.data.table import Table
from fftmoe.errors import InputError
from fuzzing import check_message

ODD: dict[str, Any] = {"a fraction": 1.5, "an object": {"a": [1]}, "a list": ["x"], "bytes": b"x"}
TEXTS = [f"a note {n} about something" for n in range(7)]
LABELS = ["x", "y", "x", "y", "x", "y", "x"]
SITES = ["s", "t", "s", "t", "s", "t", "s"]


def table_of(**columns: list[Any]) -> Table:
    return Table.of("train.jsonl", {"site": SITES, **columns})


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("name", ["label", "kind"])
@given(place=st.integers(0, 6))
def test_a_value_that_is_no_label_is_named_and_another_column_is_not_taken(odd: Any, name: str, place: int):
    labels = [odd if row == place else label for row, label in enumerate(LABELS)]
    table = Table.of("train.jsonl", {"text": TEXTS, name: labels, "other": TEXTS[::-1]})
    assert guess_roles(table, {}).columns == {LABEL: name, TEXT: "text"}
    with pytest.raises(InputError, match=rf"column '{name}' holds .*\(row {place + 1}\)"):
        labels_of(table, name)


@pytest.mark.parametrize("odd", [1.5, {"a": 1}], ids=str)
@given(place=st.integers(0, 6))
def test_a_value_that_is_no_text_is_named_and_another_column_is_not_taken(odd: Any, place: int):
    texts = [odd if row == place else text for row, text in enumerate(TEXTS)]
    table = table_of(note=texts, label=LABELS)
    assert guess_roles(table, {}).columns == {LABEL: "label", TEXT: "note"}
    with pytest.raises(InputError, match=rf"\(row {place + 1}\)"):
        texts_of(table, TEXT, "note")


def test_labels_that_are_all_fractions_are_no_reason_to_take_the_sites_for_labels():
    table = table_of(text=TEXTS, label=[n + 0.5 for n in range(7)])
    assert guess_roles(table, {}).columns[LABEL] == "label"
    with pytest.raises(InputError, match=r"column 'label' holds float values such as 0.5 \(row 1\)"):
        labels_of(table, "label")


def test_a_class_number_beyond_the_names_is_named():
    table = Table("train.parquet", {"text": TEXTS[:4], "label": [0, 1, 0, 2]}, 4, {"label": ("neg", "pos")})
    assert guess_roles(table, {}).columns[LABEL] == "label"
    with pytest.raises(InputError, match=r"the class number 2, .* \(row 4\)"):
        labels_of(table, "label")


def test_a_column_of_images_or_lists_is_not_the_text_for_its_name():
    table = table_of(text=[{"bytes": b"x"}] * 7, content=[["a"]] * 7, body=TEXTS, label=LABELS)
    assert guess_roles(table, {}, "sequence-classification").columns == {LABEL: "label", TEXT: "body"}


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2)
) | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1)
NAMES = ("text", "label", "tokens", "tags", "prompt", "completion", "site", "image")
TASKS = (
    *(None, "sequence-classification", "multi-label-classification", "regression", "image-classification"),
    *("token-classification", "causal-lm"),
)
KEYS = ("text", "label", "tokens", "tags", "prompt", "completion", "image", "targets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("facts")
    (made / "test.jsonl").write_text('{"text": "a", "label": "x"}\n')
    return made


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=1), min_size=1, max_size=4),
    named=st.dictionaries(st.sampled_from(KEYS), st.sampled_from((*NAMES, "nowhere")), max_size=3),
    task=st.sampled_from(TASKS),
    by=st.sampled_from((None, "site", "label", "nowhere")),
)
def test_whatever_a_table_holds_its_facts_are_numbers_or_one_message(
    folder: Path, rows: list[dict[str, Any]], named: dict[str, str], task: str | None, by: str | None
):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        facts = read_facts(str(folder), {f"data.{key}": column for key, column in named.items()}, task, by)
    except InputError as error:
        return check_message(error)
    assert facts.rows == len(rows)
    assert long_text(facts.texts, Reading(BUILTIN_MINILM, completes=False, chat_template=False, most=128), 16) in range(
        129
    )
