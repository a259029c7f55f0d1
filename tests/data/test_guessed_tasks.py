"""What a table is for follows from the names and values of its columns, and another guess can be asked for."""

from decimal import Decimal
from typing import Any

import pytest

from fftmoe.data.roles import COMPLETION, LABEL, NUMBERS, PROMPT, TAGS, TEXT, TOKENS, guess_roles
from fftmoe.data.table import Table
from fftmoe.data.usual_names import ANSWER_PAIRS, QUESTION_PAIRS, SELDOM_LABELS
from fftmoe.errors import InputError

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


@pytest.mark.parametrize("name", ["label", "ticket_topic", "Sentiment"])
def test_labels_of_usual_names_are_taken_before_numbers_with_fractions(name: str):
    labels = [f"f{n % 5}" for n in range(ROWS)]
    table = table_of(review=TEXTS, price=FRACTIONS, **{name: labels})
    assert guess_roles(table, {}).columns == {TEXT: "review", LABEL: name}
    assert guess_roles(table_of(review=TEXTS, price=FRACTIONS, filiale=labels), {}).columns[NUMBERS] == "price"


@pytest.mark.parametrize("name", ["kind", "site"])
def test_a_yes_and_a_no_are_taken_before_numbers_with_fractions_and_two_clients_are_not(name: str):
    table = table_of(review=TEXTS, price=FRACTIONS, **{name: ["a", "b"] * (ROWS // 2)})
    assert guess_roles(table, {}).columns[LABEL if name == "kind" else NUMBERS] == (
        "kind" if name == "kind" else "price"
    )


AMOUNTS = [str(1000 + n - n % 3 // 2) for n in range(ROWS)]  # whole, and some of them twice
MEASURED = {
    "fractions": FRACTIONS,
    "a decimal comma": [number.replace(".", ",") for number in FRACTIONS],
    "typed": [float(number) for number in FRACTIONS],
    "decimals": [Decimal(number) for number in FRACTIONS],
    "whole": AMOUNTS,
}


@pytest.mark.parametrize("values", MEASURED.values(), ids=MEASURED.keys())
@pytest.mark.parametrize("repeats", [False, True])
def test_numbers_that_are_measured_are_targets_named_or_not_and_never_the_text(values: list[Any], repeats: bool):
    """Also beside texts that repeat, which are no labels of the numbers."""
    texts = TEXTS[: ROWS // 3] * 3 if repeats else TEXTS
    table = table_of(what=texts, price=values, team=[f"t{n % 4}" for n in range(ROWS)])
    expected = {TEXT: "what", NUMBERS: "price"}
    for named in ({LABEL: "price"}, {LABEL: "price", TEXT: "what"}, {}):
        found = guess_roles(table, named, by="team")
        assert (found.task, dict(found.columns)) == ("regression", expected)
    assert guess_roles(table, {LABEL: "price"}, "sequence-classification").columns[LABEL] == "price"
    assert guess_roles(table, {}, "sequence-classification").columns[TEXT] == "what"


@pytest.mark.parametrize("values", [[n % 5 + 1 for n in range(ROWS)], [f"{n % 30}" for n in range(ROWS)]])
def test_whole_numbers_that_repeat_are_labels_where_they_are_named(values: list[Any]):
    table = table_of(review=TEXTS, stars=values, shop_id=[f"{n % 3}" for n in range(ROWS)])
    assert guess_roles(table, {LABEL: "stars"}).columns == {TEXT: "review", LABEL: "stars"}
    assert guess_roles(table, {}).columns == {TEXT: "review", LABEL: "stars"}


def test_numbers_of_rows_are_no_targets():
    """All differ, as no price and no count does for long."""
    table = table_of(what=TEXTS, case=[str(n) for n in range(ROWS)])
    with pytest.raises(InputError, match="no column looks like labels"):
        guess_roles(table, {})


def test_classes_with_names_are_labels_however_few_rows_each_has():
    classes = tuple(f"c{n}" for n in range(ROWS))
    columns = {"text": TEXTS, "code": list(range(ROWS))}
    table = Table("train.parquet", columns, ROWS, {"code": classes})
    assert guess_roles(table, {LABEL: "code"}).task == "sequence-classification"


def test_a_table_without_texts_is_refused_and_no_numbers_are_read_as_texts():
    table = table_of(price=FRACTIONS, size=FRACTIONS[::-1], label=["a", "b"] * (ROWS // 2))
    with pytest.raises(InputError, match="columns of numbers are none"):
        guess_roles(table, {})
    assert guess_roles(table, {TEXT: "size"}).columns[TEXT] == "size"


WORDS = [[f"w{n}", f"w{n + 1}", "flew"][: n % 3 + 1] for n in range(ROWS)]
MARKS = [["B", "O", "O"][: n % 3 + 1] for n in range(ROWS)]


@pytest.mark.parametrize(
    ("words", "tags"),
    [("words", "ner"), ("tokens", "labels"), ("wort", "tags"), ("wort", "art"), ("Tokens", "NER_Tags")],
)
def test_two_columns_of_lists_of_equal_lengths_are_words_and_tags(words: str, tags: str):
    table = table_of(site=["s", "t"] * (ROWS // 2), **{tags: MARKS, words: WORDS})
    found = guess_roles(table, {}, by="site")
    assert (found.task, found.columns) == ("token-classification", {TOKENS: words, TAGS: tags})
    assert guess_roles(table, {}, "token-classification").columns == found.columns


def test_lists_that_may_be_something_else_are_no_words_and_tags():
    unequal = table_of(note=TEXTS, words=WORDS, tags=[["B"]] * ROWS, kind=["a", "b"] * (ROWS // 2))
    assert guess_roles(unequal, {LABEL: "kind"}).task == "sequence-classification"
    beside_a_text = table_of(text=TEXTS, found=MARKS, seen=[own[::-1] for own in MARKS])
    with pytest.raises(InputError, match="no column looks like labels"):
        guess_roles(beside_a_text, {})
    labelled = table_of(note=TEXTS, keywords=WORDS, category=["a", "b"] * (ROWS // 2))
    assert guess_roles(labelled, {}).columns == {TEXT: "note", LABEL: "category"}
