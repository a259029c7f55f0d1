"""Which preference recipes and rows are refused, with which words, and what a recipe of pairs has by default."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fftmoe.config import complete_recipe, parse_recipe
from fftmoe.data import Preferences
from fftmoe.errors import InputError
from fftmoe.setup.compose import compose
from finished import Finished
from five_clients import changed
from language import save_language_model, save_pairs
from shared_fixtures import Cli

METRIC = "preference_accuracy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head": {"kind": "averaged", "learning_rate": 1.0}}, ("preference", "no head", "remove the section `head`")),
        ({"method": "head-only"}, ("head-only", "language model", "choose another")),
        ({"data__chosen": "better"}, ("no column 'better'", "data.chosen")),
        ({"data__prompt": "question"}, ("no column 'question'", "data.prompt")),
        ({"data__rejected": None}, ("data.chosen and data.rejected belong together",)),
        ({"data__chosen": None, "data__rejected": None, "data__completion": "chosen"}, ("needs data.prompt",)),
        ({"data__completion": "chosen"}, ("leave data.completion out",)),
        ({"data__rejected": "chosen"}, ("are not three columns",)),
        ({"data__max_length": 38}, ("data.max_length=38", "37 tokens")),
        ({"data__max_length": 1}, ("data.max_length=1 leaves nothing",)),
        ({"engine__clients_per_batch": 2}, ("clients_per_batch=2", "preference", "one client at a time")),
        ({"evaluation__generate": {"examples": 3, "max_new_tokens": 2}}, ("evaluation.generate", "has none")),
        ({"preference": {"loss": "dpo", "margin": 0.5}}, ("preference.margin=0.5", "simpo")),
        ({"preference": {"loss": "orpo"}, "engine__micro_batch_size": 2}, ("micro_batch_size=2", "orpo", "simpo")),
        ({"preference": {"loss": "kto"}}, ("preference.loss", "kto")),
        ({"preference": {"beta": 0}}, ("preference.beta",)),
        ({"backbone__task": "causal-lm"}, ("has no pairs of answers", "section `preference`")),
    ],
)
def test_a_recipe_that_cannot_be_run(
    preference_values: dict[str, Any], tmp_path: Path, cli: Cli, changes: dict[str, Any], words: tuple[str, ...]
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(preference_values, **changes)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 2
    assert not (tmp_path / "run").exists()
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("say ash", "ash", "")], r"column 'rejected' is empty in row 1"),
        ([("say ash", "ash", "bay"), ("say", " ", "bay")], r"column 'chosen' is empty in row 2"),
        ([(" ", "ash", "bay")], r"column 'prompt' is empty in row 1"),
        ([("say ash", "#", "bay")], r"nothing of '#' \(row 1\) is left to learn"),
        ([("say ash", "ash", "ash"), ("say", "bay", "bay")], r"equal in every row .* data.chosen and data.rejected"),
    ],
)
def test_rows_from_which_nothing_can_be_learned(
    preference_values: dict[str, Any], tmp_path: Path, rows: list[tuple[str, str, str]], words: str
):
    data = save_pairs(tmp_path / "data")
    with (data / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *rows])
    with pytest.raises(InputError, match=words):
        compose(parse_recipe(changed(preference_values, data__source=str(data)), "test"))


def test_pairs_with_equal_answers_are_counted_and_not_judged(
    preference_values: dict[str, Any], tmp_path: Path, cli: Cli
):
    data = save_pairs(tmp_path / "data")
    for split in ("train", "test"):
        with (data / f"{split}.csv").open("a", newline="") as file:
            csv.writer(file).writerows([("say ash", "ash", "ash", "once", "author-0")] * 3)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(preference_values, data__source=str(data), federation__rounds=1)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    for said in (
        "training rows: in 3 of 64 pairs both answers are equal",
        "test rows: in 3 of 26 pairs both answers are equal",
    ):
        assert said in " ".join((outcome.out + outcome.err).split())
    # Accuracies are shares of the 23 pairs that say something.
    right = 23 * 2 * Finished(tmp_path / "run").summary[METRIC]
    assert right == pytest.approx(round(right), abs=1e-9)


def test_a_model_without_chat_template_is_named(preference_values: dict[str, Any], tmp_path: Path):
    values = changed(preference_values, backbone__model=str(save_language_model(tmp_path / "model")))
    with pytest.raises(InputError, match="has no chat template; set data"):
        compose(parse_recipe(changed(values, data__chat_template=True), "test"))


def test_columns_of_usual_names_are_found_and_messages_stand_for_the_last_of_them(
    preference_values: dict[str, Any], tmp_path: Path
):
    """As the hub has them: conversations in the place of answers, and their prompt as a text."""
    told, plain = tmp_path / "told.jsonl", tmp_path / "plain.jsonl"
    answers = [("say ash", "ash", "bay"), ("say cod", "cod cod", "dew")] * 11
    said = [
        {
            "question": prompt,
            **{
                key: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
                for key, text in (("chosen", chosen), ("rejected", rejected))
            },
        }
        for prompt, chosen, rejected in answers
    ]
    told.write_text("".join(json.dumps(row) + "\n" for row in said))
    plain.write_text(
        "".join(json.dumps(dict(zip(("question", "chosen", "rejected"), row, strict=True))) + "\n" for row in answers)
    )
    stated = {"backbone": {"model": preference_values["backbone"]["model"]}}
    first, second = (complete_recipe({**stated, "data": {"source": str(place)}}, "test")[0] for place in (told, plain))
    assert (first.backbone.task, first.data.prompt, first.data.chosen) == ("preference", "question", "chosen")
    assert first.preference is not None
    assert (first.preference.loss, first.preference.beta, first.preference.margin) == ("dpo", 0.1, 0.0)
    assert first.adapter.blocks == "all"
    assert first.data.chat_template
    assert first.data.max_length == second.data.max_length
    one, other = (compose(recipe, measures=False).train for recipe in (first, second))
    assert isinstance(one, Preferences)
    assert isinstance(other, Preferences)
    assert torch.equal(one.answers.batch([0])["input_ids"], other.answers.batch([0])["input_ids"])


def test_defaults_of_simpo():
    stated = {"data": {"source": "nowhere", "prompt": "p", "chosen": "c", "rejected": "r"}}
    found = complete_recipe({**stated, "preference": {"loss": "simpo"}}, "test", may_read=False)[0]
    assert found.preference is not None
    assert (found.backbone.task, found.preference.beta, found.preference.margin) == ("preference", 2.0, 1.0)
    assert found.federation.learning_rate == 5e-5
