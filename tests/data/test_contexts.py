"""An instruction is read with the text that it is about, wherever tables of instructions are read."""

from pathlib import Path
from typing import Any

import pytest

from crossed_inputs import Inputs
from fftmoe.config import complete_recipe
from fftmoe.config.facts import read_facts
from fftmoe.data import read_tables
from fftmoe.data.contexts import ANSWER_COLUMNS, CONTEXTS
from fftmoe.data.prompts_asked import with_columns_asked, with_prompts
from fftmoe.data.roles import COMPLETION, PROMPT, TEXT, guess_roles
from fftmoe.data.table import Table
from fftmoe.data.unlabelled import read_texts
from fftmoe.errors import InputError
from tables import write_jsonl

ASKED = ["say it", "sum up", "go on", "stop", "wait"]
ABOUT = ["", "a long text", "  ", None, "another"]
SAID = ["a", "b", "c", "d", "e"]
JOINED = ["say it", "sum up\n\na long text", "go on", "stop", "wait\n\nanother"]
PAIR = {PROMPT: "prompt", COMPLETION: "completion"}


def table_of(**columns: list[Any]) -> Table:
    return Table.of("train.jsonl", columns)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("answer", ANSWER_COLUMNS)
@pytest.mark.parametrize("spelt", [str.lower, str.capitalize])
@pytest.mark.parametrize("task", [None, "causal-lm"])
def test_a_prompt_is_the_instruction_with_its_text(context: str, answer: str, spelt: Any, task: str | None):
    columns = {
        spelt("instruction"): ASKED,
        spelt(context): ABOUT,
        spelt(answer): SAID,
        "category": [*"xyxyx"],
    }
    table = with_prompts(table_of(**columns), {}, task)
    assert guess_roles(table, {}, task).columns == PAIR
    assert (table.columns["prompt"], table.columns["completion"]) == (JOINED, SAID)


def test_a_table_without_any_such_text_is_read_as_it_is():
    table = with_prompts(table_of(instruction=ASKED, input=["", None, " ", "", ""], output=SAID), {})
    assert guess_roles(table, {}).columns == {PROMPT: "instruction", COMPLETION: "output"}


@pytest.mark.parametrize("named", [{PROMPT: "instruction", COMPLETION: "output"}, {TEXT: "output"}])
def test_columns_that_a_recipe_names_are_read_as_they_are(named: dict[str, str]):
    table = with_prompts(table_of(instruction=ASKED, input=ABOUT, output=SAID), named, "causal-lm")
    assert guess_roles(table, named, "causal-lm").columns == named
    assert "prompt" not in table.columns


def test_prompts_of_the_table_itself_are_not_replaced():
    table = table_of(instruction=ASKED, input=ABOUT, output=SAID, prompt=SAID)
    assert with_prompts(table, {}) is table
    assert with_columns_asked(table, ["prompt", "completion"]).columns["prompt"] == SAID


def test_training_tests_and_questions_are_read_alike(tmp_path: Path):
    """The test rows have no such text at all, and a question has no answer."""
    write_jsonl(tmp_path / "train.jsonl", {"instruction": ASKED, "input": ABOUT, "output": SAID})  # pyright: ignore[reportArgumentType]
    write_jsonl(tmp_path / "test.jsonl", {"instruction": ASKED, "input": [""] * 5, "output": SAID})
    facts = read_facts(str(tmp_path), {}, None, None)
    assert (facts.task, dict(facts.columns)) == ("causal-lm", PAIR)
    tables = read_tables(str(tmp_path), {"data.prompt": ["prompt"], "data.completion": ["completion"]})
    assert [list(tables[split].columns["prompt"]) for split in ("train", "test")] == [JOINED, ASKED]
    write_jsonl(tmp_path / "ask.jsonl", {"instruction": ASKED, "input": ABOUT})  # pyright: ignore[reportArgumentType]
    assert read_texts(tmp_path / "ask.jsonl", "prompt").texts == JOINED
    backbone = Inputs.write(tmp_path.parent / f"{tmp_path.name} models").recipe("causal-lm")["backbone"]
    recipe = complete_recipe({"data": {"source": str(tmp_path)}, "backbone": backbone}, "here")[0]
    assert (recipe.data.prompt, recipe.data.completion) == ("prompt", "completion")


@pytest.mark.parametrize("wrong", [3, ["a"], {"a": 1}])
def test_a_text_that_is_none_is_named(wrong: Any):
    table = table_of(instruction=ASKED[:3], input=["", wrong, ""], output=SAID[:3])
    with pytest.raises(InputError, match=r"train\.jsonl: column 'input', row 2 holds .*, which is not a text"):
        with_prompts(table, {})
