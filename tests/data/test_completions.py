"""What a language model learns from: completions and texts as tokens, cut to length, and their strata."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fftmoe.config import parse_recipe
from fftmoe.data import Completions, Origin, SplitRequest, cut_notes, tokenize_completions
from fftmoe.errors import InputError
from fftmoe.setup.splits import Splits, load_splits
from five_clients import changed
from language import (
    BEGIN,
    CHAT,
    END,
    PAD,
    save_prompts,
    tiny_language_tokenizer,
)

Content = tuple[Origin, tuple[str, ...] | None, tuple[str, ...], np.ndarray]  # the first arguments of tokenization


def prompts(*pairs: tuple[str, str]) -> Content:
    first, second = zip(*pairs, strict=True)
    return Origin("here"), first, second, np.zeros(len(pairs), dtype=np.int64)


def texts(*learned: str) -> Content:
    return Origin("here"), None, learned, np.zeros(len(learned), dtype=np.int64)


def rows(examples: Completions) -> list[tuple[list[int], list[int]]]:
    """What comes before, and what is learned."""
    return [(before.tolist(), after.tolist()) for before, after in map(examples.text, range(len(examples)))]


ASH, BAY, SAY = 4, 5, 9


def test_a_completion_is_learned_to_its_end_and_its_prompt_is_not():
    found = tokenize_completions(*prompts(("say ash", "ash ash"), ("say", "bay")), tiny_language_tokenizer(), 19)
    assert rows(found) == [([BEGIN, SAY, ASH], [ASH, ASH, END]), ([BEGIN, SAY], [BAY, END])]
    batch = found.batch([1, 0])
    assert batch["input_ids"].tolist() == [[BEGIN, SAY, BAY, END, PAD, PAD], [BEGIN, SAY, ASH, ASH, ASH, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["labels"].tolist() == [[-100, -100, BAY, END, -100, -100], [-100, -100, -100, ASH, ASH, END]]
    chosen = found.select([1])
    assert rows(chosen) == rows(found)[1:]


def test_a_text_is_learned_whole():
    found = tokenize_completions(*texts("say ash", "bay"), tiny_language_tokenizer(), 19)
    assert rows(found) == [([], [BEGIN, SAY, ASH, END]), ([], [BEGIN, BAY, END])]


@pytest.mark.parametrize(
    ("max_length", "before", "after"),
    [
        (7, [BEGIN, SAY, SAY, BAY], [ASH, ASH, END]),
        (6, [BEGIN, SAY, BAY], [ASH, ASH, END]),  # of a prompt the beginning goes, not what the answer follows
        (5, [BEGIN, BAY], [ASH, ASH, END]),
        (4, [BAY], [ASH, ASH, END]),
        (3, [BAY], [ASH, ASH]),
        (2, [BAY], [ASH]),
    ],
)
def test_what_is_too_long_loses_its_prompt_first(max_length: int, before: list[int], after: list[int]):
    split = prompts(("say say bay", "ash ash"), ("say", "bay"))
    assert rows(tokenize_completions(*split, tiny_language_tokenizer(), max_length))[0] == (before, after)


def test_what_is_lost_is_said_once_and_as_it_is(caplog: pytest.LogCaptureFixture):
    """Of a long row the prompt loses its beginning; what is "beyond" the limit is lost of whole texts only."""
    for split, words in (
        (prompts(("say say bay", "ash ash"), ("say", "bay")), "of longer ones the beginning of the prompt, and then"),
        (texts("say ash bay", "say"), "what is beyond is not read"),
    ):
        (note,) = cut_notes("training", tokenize_completions(*split, tiny_language_tokenizer(), 4), 4)
        assert note.startswith(f"training rows: in {2 if 'prompt' in words else 1} of 2 texts")
        assert words in note
    assert caplog.messages == []


def test_a_long_text_loses_its_end():
    assert rows(tokenize_completions(*texts("say ash bay"), tiny_language_tokenizer(), 3)) == [([], [BEGIN, SAY, ASH])]


def test_a_chat_template_says_who_speaks():
    tokenizer = tiny_language_tokenizer(CHAT)
    user, bot = (int(tokenizer.get_vocab()[word]) for word in ("user", "bot"))
    found = tokenize_completions(*prompts(("say ash", "ash")), tokenizer, 19, chat_template=True)
    assert rows(found) == [([user, SAY, ASH, bot], [ASH, END])]


@pytest.mark.parametrize(
    ("tokenizer", "split", "max_length", "chat", "message"),
    [
        (
            tiny_language_tokenizer(),
            prompts(("say", "ash"), ("say", "#")),
            19,
            False,
            r"'#' \(row 2\) is left to learn",
        ),
        (tiny_language_tokenizer(), texts("#"), 19, False, r"'#' \(row 1\) is left"),
        (tiny_language_tokenizer(), prompts(("say", "ash")), 1, False, "max_length=1 leaves nothing"),
        (tiny_language_tokenizer(), prompts(("say", "ash")), 19, True, "has no chat template; set"),
        (
            tiny_language_tokenizer("{{ raise_exception('no') }}"),
            prompts(("say", "ash")),
            19,
            True,
            "rejects a message: no",
        ),
        (
            tiny_language_tokenizer("{{ messages | length }} {{ messages[-1].content }}"),
            prompts(("say", "ash")),
            19,
            True,
            "changes the prompt of row 1 once it is answered",
        ),
    ],
)
def test_what_cannot_be_learned_is_refused(tokenizer: Any, split: Content, max_length: int, chat: bool, message: str):
    with pytest.raises(InputError, match=message):
        tokenize_completions(*split, tokenizer, max_length, chat)


def test_a_tokenizer_that_ends_no_text_is_refused():
    tokenizer = tiny_language_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        tokenize_completions(*texts("ash"), tokenizer, 19)


def test_strata_are_those_of_the_first_column_that_all_splits_have(language_values: dict[str, Any], tmp_path: Path):
    folder = save_prompts(tmp_path / "data")

    def load(columns: tuple[str, ...] = (), **changes: Any) -> Splits:
        recipe = parse_recipe(changed(language_values, **changes), "test")
        return load_splits(recipe, str(folder), SplitRequest(), columns)

    natural = {"kind": "natural", "by": "author"}
    found = load(partition=natural)  # no split has a column `label`, which is asked for first
    assert found.strata == ("author-0", "author-1", "author-2")
    np.testing.assert_array_equal(found.examples["test"].labels, np.arange(23) % 3)
    whole = {"data__prompt": None, "data__completion": None}
    found = load(("author",), **whole)
    assert found.strata == ("all",)
    assert found.label_names == ()
    assert not found.examples["train"].labels.any()
    assert not cast(Completions, found.examples["train"]).starts.any()  # no prompts
    assert found.columns.names["author"][:2] == ["author-0", "author-1"]
    with pytest.raises(InputError, match=r"no column 'answer'.*data.completion"):
        load(data__completion="answer")
    (folder / "test.csv").write_text("prompt,completion\nsay,\n")
    with pytest.raises(InputError, match="'completion' is empty in row 1"):
        load()
