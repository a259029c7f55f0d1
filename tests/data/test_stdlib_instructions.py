"""The builtin instructions: right answers, eight kinds of equal size, and no test question in the training rows."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from fftmoe.data import stdlib_functions
from fftmoe.data.sources import TRAIN_AND_TEST, read_raw
from fftmoe.data.stdlib_docs import module_chapters
from fftmoe.data.stdlib_instructions import ROWS, TEST_ROWS, Instruction, is_valid, stdlib_instructions
from fftmoe.errors import InputError


@pytest.fixture(scope="module")
def made() -> dict[str, list[Instruction]]:
    return stdlib_instructions()


def of_kind(made: dict[str, list[Instruction]], kind: str) -> list[tuple[str, str]]:
    """The shown material and the answer of every row of a kind."""
    rows = [row for split in made.values() for row in split if row.kind == kind]
    return [(row.prompt.partition("\n")[2], row.completion) for row in rows]


def test_every_kind_has_the_same_number_of_rows(made: dict[str, list[Instruction]]):
    by_kind = {split: Counter(row.kind for row in rows) for split, rows in made.items()}
    assert len(by_kind["train"]) == 8
    assert set(by_kind["train"].values()) == {ROWS - TEST_ROWS}
    assert by_kind["test"] == dict.fromkeys(by_kind["train"], TEST_ROWS)


def test_no_question_occurs_twice_and_no_answer_is_empty(made: dict[str, list[Instruction]]):
    rows = [row for split in made.values() for row in split]
    assert len({row.prompt for row in rows}) == len(rows)
    assert all(row.completion.strip() == row.completion != "" for row in rows)


@pytest.mark.slow
def test_the_rows_are_the_same_every_time(made: dict[str, list[Instruction]]):
    assert stdlib_instructions() == made


def test_values_are_those_of_python(made: dict[str, list[Instruction]]):
    for expression, value in of_kind(made, "values"):
        assert repr(eval(expression, {})) == value


def test_lines_are_valid_or_not_and_both_are_asked(made: dict[str, list[Instruction]]):
    found = of_kind(made, "validity")
    assert all(answer == ("yes" if is_valid(line) else "no") for line, answer in found)
    assert min(Counter(answer for _, answer in found).values()) > len(found) / 4


def test_answers_are_among_the_options(made: dict[str, list[Instruction]]):
    for shown, chapter in of_kind(made, "chapters"):
        options = re.findall(r"^- (.*)$", shown, re.MULTILINE)
        assert chapter in options
        assert set(options) <= set(module_chapters().values())
        assert len(set(options)) == 4
    prompts = {r.prompt: r.completion for rows in made.values() for r in rows if r.kind == "missing-words"}
    for prompt, word in prompts.items():
        question, _, text = prompt.partition("\n")
        assert word in question.removeprefix("Which word is missing: ").rstrip("?").split(", ")
        assert "____" in text
        assert word not in re.findall(r"\w+", text)


def test_sources_say_what_is_asked(made: dict[str, list[Instruction]]):
    for source, answer in of_kind(made, "errors"):
        assert all(f"raise {name}" in source for name in answer.split(", "))
    for signature, answer in of_kind(made, "defaults"):
        (function,) = ast.parse(f"{signature}\n    pass").body
        assert isinstance(function, ast.FunctionDef)
        positional = [*function.args.posonlyargs, *function.args.args]
        last = positional[len(positional) - len(function.args.defaults) :]
        named = [a for a, d in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True) if d]
        assert answer == ", ".join(argument.arg for argument in [*last, *named])


def test_a_summary_does_not_stand_in_the_source_that_is_shown(made: dict[str, list[Instruction]]):
    assert all(summary not in source for source, summary in of_kind(made, "summaries"))


def test_the_source_has_columns_for_a_language_model():
    tables = read_raw("builtin:stdlib-instructions").splits
    assert set(tables) >= set(TRAIN_AND_TEST.splits)
    assert all(set(table.columns) == {"prompt", "completion", "kind"} for table in tables.values())


def test_a_python_without_its_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdlib_functions.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(InputError, match="without the sources of its standard library"):
        stdlib_instructions()
