"""Pairs of answers as tokens: the same prompt before both, what is cut, and conversations in the place of texts."""

import logging
from typing import Any

import numpy as np
import pytest

from fftmoe.data import Preferences, Table, tokenize_preferences
from fftmoe.data.chats import messages_of
from fftmoe.data.lost import contents, cut_notes, equal_notes, shared_notes
from fftmoe.data.paired_chats import with_plain_pairs
from fftmoe.data.prompts_asked import with_prompts
from fftmoe.data.roles import guess_roles
from fftmoe.data.table import Origin
from fftmoe.errors import InputError
from language import BEGIN, CHAT, END, tiny_language_tokenizer

Row = tuple[str, str, str]


def made(*rows: Row, max_length: int = 19, chat: str | None = None) -> Preferences:
    prompts, chosen, rejected = zip(*rows, strict=True)
    labels, tokenizer = np.zeros(len(rows), dtype=np.int64), tiny_language_tokenizer(chat)
    return tokenize_preferences(
        Origin("test"), prompts, (chosen, rejected), labels, tokenizer, max_length, chat is not None
    )


def texts(examples: Preferences) -> list[tuple[list[int], list[int]]]:
    found: Any = examples.answers
    return [tuple(part.tolist() for part in found.text(row)) for row in range(2 * len(examples))]  # type: ignore[misc]


@pytest.mark.parametrize("max_length", [2, 3, 5, 6, 8, 11, 19])
def test_both_answers_follow_the_same_prompt_however_much_is_cut(max_length: int):
    rows: list[Row] = [
        ("say ash twice once", "ash", "bay bay bay bay"),
        ("say bay", "bay bay bay", "cod"),
        ("say", "cod dew", "cod elm"),
    ]
    whole, cut = texts(made(*rows)), texts(made(*rows, max_length=max_length))
    for row in range(len(rows)):
        (prompt, chosen), (other, rejected) = cut[row], cut[row + len(rows)]
        assert prompt == other
        assert len(prompt) >= 1
        assert len(chosen) >= 1
        assert max(len(prompt) + len(chosen), len(prompt) + len(rejected)) <= max_length
        (all_prompt, all_chosen), (_, all_rejected) = whole[row], whole[row + len(rows)]
        # What is kept are the ends of prompts, after the token that begins a text, and the beginnings of answers.
        assert chosen == all_chosen[: len(chosen)]
        assert rejected == all_rejected[: len(rejected)]
        assert all_prompt[len(all_prompt) - len(prompt) + 1 :] == prompt[1:]
        assert len(prompt) == 1 or prompt[0] == BEGIN
        if len(prompt) > 1:  # an answer is only cut when nothing of the prompt is left to cut
            assert (chosen[-1], rejected[-1]) == (END, END)


def test_what_is_cut_and_what_is_equal_is_counted(caplog: pytest.LogCaptureFixture):
    rows: list[Row] = [("say ash", "ash bay", "ash cod"), ("say", "ash", "ash"), ("say", "bay", "cod")]
    with caplog.at_level(logging.WARNING):
        examples = made(*rows, max_length=2)
    assert caplog.messages == []  # a run says it with its notes, once
    # Of the first pair only "ash" is left of both answers.
    assert equal_notes("training", examples) == (
        "training rows: in 2 of 3 pairs both answers are equal, as the model reads them, which says nothing of a "
        "preference",
    )
    (note,) = cut_notes("test", examples, 2)
    assert "6 of 6 texts" in note
    assert "the beginning of the prompt, and then the end of the answer, is not read" in note
    with pytest.raises(InputError, match=r"equal in every row .*raise data\.max_length"):
        made(rows[0], rows[1], max_length=2)


def test_rows_in_both_splits_are_equal_in_all_three_texts():
    train = made(("say ash", "ash", "bay"), ("say bay", "bay", "ash"))
    assert shared_notes(train, made(("say ash", "ash", "cod"))) == ()
    assert "1 of 2 test rows" in shared_notes(train, made(("say ash", "ash", "bay"), ("say", "ash", "bay")))[0]
    assert len(set(contents(train))) == 2


def test_a_chat_template_writes_the_prompt_once():
    (prompt, chosen), (other, rejected) = texts(made(("ash", "bay", "cod"), chat=CHAT))
    assert prompt == other
    tokenizer = tiny_language_tokenizer(CHAT)
    assert str(tokenizer.decode(prompt)).split() == ["user", "ash", "bot"]
    assert [tokenizer.decode(answer, skip_special_tokens=True) for answer in (chosen, rejected)] == ["bay", "cod"]


def said(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


ASKED = ("user", "say ash")
TURNS = (ASKED, ("assistant", "ash"), ("user", "say bay"))


def table(**columns: Any) -> Table:
    return Table.of("the test rows", {name: [value] for name, value in columns.items()})


def plain(**columns: Any) -> dict[str, Any]:
    found = with_plain_pairs(table(**columns), "prompt", "chosen", "rejected").columns
    return {name: found[name][0] for name in found}


def test_the_messages_that_two_conversations_have_in_common_are_the_prompt():
    one = plain(chosen=said(ASKED, ("assistant", "ash")), rejected=said(ASKED, ("assistant", "bay")))
    assert one == {"prompt": "say ash", "chosen": "ash", "rejected": "bay"}
    given = plain(
        prompt="another", chosen=said(ASKED, ("assistant", "ash")), rejected=said(ASKED, ("assistant", "bay"))
    )
    assert given["prompt"] == "say ash"
    long = plain(chosen=said(*TURNS, ("assistant", "bay")), rejected=said(*TURNS, ("assistant", "cod")))
    assert messages_of(long["prompt"]) == said(*TURNS)
    assert (long["chosen"], long["rejected"]) == ("bay", "cod")


def test_answers_of_one_message_follow_the_prompt_of_the_row():
    answers = {"chosen": said(("assistant", "bay")), "rejected": said(("assistant", "cod"))}
    assert plain(prompt="say ash", **answers) == {"prompt": "say ash", "chosen": "bay", "rejected": "cod"}
    long = plain(prompt=said(*TURNS), **answers)
    assert messages_of(long["prompt"]) == said(*TURNS)
    texts_with_messages = plain(prompt=said(*TURNS), chosen="bay", rejected="cod")
    assert messages_of(texts_with_messages["prompt"]) == said(*TURNS)
    assert texts_with_messages["chosen"] == "bay"


def test_texts_stay_as_they_are():
    given = table(prompt="[{'role': 'system'}]", chosen="a", rejected="b")
    assert with_plain_pairs(given, "prompt", "chosen", "rejected") is given
    missing = table(chosen="a", prompt="p")
    assert with_plain_pairs(missing, "prompt", "chosen", "rejected") is missing


@pytest.mark.parametrize(
    ("chosen", "rejected", "words"),
    [
        (said(ASKED, ("assistant", "a")), said(("user", "x"), ("assistant", "b")), "differ before their last message"),
        (said(ASKED, ("assistant", "a")), "b", "differ before their last message"),
        (said(ASKED), said(ASKED), "ends with the assistant's answer"),
        ([], said(ASKED), "ends with the assistant's answer"),
        (said(*TURNS[:2], ("assistant", "a")), said(*TURNS[:2], ("assistant", "b")), "ends with a user's message"),
        ([{"role": "wizard", "content": "a"}], said(("assistant", "b")), "a message has a role"),
        ([{"role": "assistant", "content": 3}], said(("assistant", "b")), "a message has a role"),
        (["a"], said(("assistant", "b")), "a message has a role"),
    ],
)
def test_a_conversation_that_is_no_answer_to_a_prompt_is_named(chosen: Any, rejected: Any, words: str):
    with pytest.raises(InputError, match=f"the test rows, row 1: .*{words}.*remove the row"):
        plain(chosen=chosen, rejected=rejected)


def test_the_columns_of_pairs_are_guessed_and_a_missing_one_is_named():
    told = table(chosen=said(ASKED, ("assistant", "a")), rejected=said(ASKED, ("assistant", "b")))
    found = guess_roles(with_prompts(told, {}), {})
    assert found.task == "preference"
    assert found.columns == {"data.prompt": "prompt", "data.chosen": "chosen", "data.rejected": "rejected"}
    with pytest.raises(InputError, match=r"no column is called prompt or question .*data\.prompt"):
        guess_roles(table(chosen="a", rejected="b"), {})
    with pytest.raises(InputError, match=r"no column is called rejected .*data\.rejected"):
        guess_roles(table(prompt="p", chosen="a"), {}, "preference")
    labelled = table(text="t", label="l", chosen="a", rejected="b")
    assert guess_roles(labelled, {"data.text": "text", "data.label": "label"}).task == "sequence-classification"
