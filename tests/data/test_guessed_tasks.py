"""What a table is for follows from the names and values of its columns, and another guess can be asked for."""

from typing import Any

import pytest

from fftmoe.data.roles import COMPLETION, LABEL, NUMBERS, PROMPT, TEXT, guess_roles
from fftmoe.data.table import Table
from fftmoe.data.usual_names import ANSWER_PAIRS, QUESTION_PAIRS, SELDOM_LABELS

ROWS = 60
TEXTS = [f"a note {n} about something" for n in range(ROWS)]
WRITTEN = [f"an answer {n}" for n in range(ROWS)]
FRACTIONS = [f"{n}.25" for n in range(ROWS)]


def table_of(**columns: list[Any]) -> Table:
    return Table.of("train.csv", columns)


@pytest.mark.parametrize(("asked", "answer"), [*ANSWER_PAIRS, *QUESTION_PAIRS])
@pytest.mark.parametrize("spelt", [str.lower, str.capitalize, str.upper])
def test_prompts_with_written_answers_are_for_a_language_model(asked: str, answer: str, spelt: Any):
    table = table_of(**{spelt(asked): TEXTS, spelt(answer): WRITTEN, "Note": TEXTS})
    found = guess_roles(table, {})
    assert found.task == "causal-lm"
    assert found.columns == {PROMPT: spelt(asked), COMPLETION: spelt(answer)}


@pytest.mark.parametrize(("asked", "answer"), QUESTION_PAIRS)
def test_answers_of_which_few_differ_are_labels(asked: str, answer: str):
    few = table_of(**{asked: TEXTS, answer: [("yes", "no", "maybe")[n % 3] for n in range(ROWS)]})
    assert guess_roles(few, {}).columns == {TEXT: asked, LABEL: answer}
    assert guess_roles(few, {}, "causal-lm").columns == {PROMPT: asked, COMPLETION: answer}
    labelled = table_of(**{asked: TEXTS, answer: WRITTEN, "intent": ["a", "b"] * (ROWS // 2)})
    assert guess_roles(labelled, {}).columns[LABEL] == "intent"


def test_a_label_that_is_named_is_not_passed_over_for_a_pair_of_usual_names():
    table = table_of(instruction=TEXTS, output=WRITTEN, kind=["a", "b"] * (ROWS // 2))
    found = guess_roles(table, {LABEL: "kind"})
    assert (found.task, found.columns[LABEL]) == ("sequence-classification", "kind")


@pytest.mark.parametrize("name", SELDOM_LABELS)
def test_the_column_of_clients_is_not_taken_for_the_labels(name: str):
    """It has the fewest values, and a model would learn whose a row is."""
    clients = ["s", "t"] * (ROWS // 2)
    table = table_of(words=TEXTS, **{name.upper(): clients}, finding=[f"f{n % 5}" for n in range(ROWS)])
    assert guess_roles(table, {}).columns == {TEXT: "words", LABEL: "finding"}
    assert guess_roles(table_of(words=TEXTS, **{name: clients}), {}).columns[LABEL] == name


@pytest.mark.parametrize("typed", [str, float])
def test_numbers_with_fractions_are_targets(typed: Any):
    table = table_of(review=TEXTS, price=[typed(number) for number in FRACTIONS])
    found = guess_roles(table, {})
    assert (found.task, dict(found.columns)) == ("regression", {NUMBERS: "price", TEXT: "review"})
    assert guess_roles(table, {}, "regression").columns[NUMBERS] == "price"


@pytest.mark.parametrize("wrong", ["n/a", "", None, "nan", "1,5"])
def test_one_value_that_is_no_number_does_not_make_labels_of_the_others(wrong: Any):
    table = table_of(review=TEXTS, price=[wrong, *FRACTIONS[1:]])
    assert guess_roles(table, {}).columns[NUMBERS] == "price"


@pytest.mark.parametrize(
    "values",
    [
        [f"{n % 5}" for n in range(ROWS)],  # grades
        [f"{n % 10 / 2}" for n in range(ROWS)],  # grades in halves
        [f"{n % 20}.0" for n in range(ROWS)],  # numbers of classes, as a program writes them beside empty cells
        [f"1.{n % 20}.3" for n in range(ROWS)],
        [f"{n % 20}.5" if n % 3 else "other" for n in range(ROWS)],
    ],
)
def test_names_that_look_like_numbers_are_labels(values: list[str]):
    assert guess_roles(table_of(review=TEXTS, kind=values), {}).columns == {TEXT: "review", LABEL: "kind"}


def test_labels_are_taken_before_numbers_with_fractions():
    table = table_of(review=TEXTS, price=FRACTIONS, kind=["a", "b"] * (ROWS // 2))
    assert guess_roles(table, {}).columns == {TEXT: "review", LABEL: "kind"}
    named = guess_roles(table_of(review=TEXTS, price=FRACTIONS), {LABEL: "price"})
    assert named.task == "sequence-classification"
