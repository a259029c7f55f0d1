"""Guesses what the columns of a table hold, from their names and values: texts, labels, prompts, images, tags.

`fftmoe init` and a recipe that leaves its columns out guess alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fftmoe.data.columns import check_column, plain_columns
from fftmoe.data.image_folders import IMAGE_SUFFIXES
from fftmoe.data.label_columns import find_target, guess_label, text_columns, without_only_text
from fftmoe.data.list_columns import LOOKED_AT, holds_lists, several_labels, words_and_tags
from fftmoe.data.number_columns import holds_measurements
from fftmoe.data.prompts_asked import asks_for_pairs
from fftmoe.data.table import Table
from fftmoe.data.usual_names import (
    ANSWER_PAIRS,
    CHOSEN,
    COMPLETION,
    IMAGE,
    LABEL,
    LABEL_NAMES,
    NUMBERS,
    PROMPT,
    PROMPT_NAMES,
    QUESTION_PAIRS,
    REJECTED,
    TAG_NAMES,
    TAGS,
    TEXT,
    TEXT_NAMES,
    TOKEN_NAMES,
    TOKENS,
    first_of,
    pair_of,
    single_columns,
)
from fftmoe.errors import InputError

LANGUAGE_TASKS = ("causal-lm", "preference")
"""The tasks of a language model, which continues texts and has no head."""
ROWS_AN_ANSWER = 10  # an answer that fewer rows have on average was written; others are chosen among a few


@dataclass(frozen=True)
class Roles:
    """Names the task that a table is for, and its columns by the key of the recipe that names them."""

    task: str
    columns: Mapping[str, str]


def guess_roles(table: Table, named: Mapping[str, str], task: str | None = None, by: str | None = None) -> Roles:
    """Guess the task, and the columns that the recipe does not name.

    In this order: chosen and rejected answers; prompts with completions; lists of tokens with lists of tags; images
    with labels; texts with lists of labels; texts with numbers that have fractions; texts with labels. A column of
    labels that the recipe names decides by its values alone: lists of labels, numbers that are measured, or labels.

    Args:
        named: columns by key, as the recipe names them. task: the recipe's task; None to guess it.
        by: the column that names the clients, which has no other role.

    Raises:
        InputError: a column that the recipe names is missing, or no column looks like what the task needs.
    """
    for key, column in named.items():
        check_column(table, column, [key])
    task = task or _guess_task(table, named, by)
    if task == "causal-lm":
        return Roles(task, _of_language(table, named))
    if task == "preference":
        return Roles(task, _of_preference(table, named))
    free = [column for column in table.columns if column not in (*named.values(), by)]
    if task == "token-classification" and named.keys().isdisjoint((TOKENS, TAGS)):
        named = {**named, **dict(zip((TOKENS, TAGS), words_and_tags(table, free) or (), strict=False))}
    found: dict[str, str] = {}
    for key in _KEYS[task]:
        left = [column for column in free if column not in found.values()]
        if key == LABEL and TEXT in _KEYS[task] and TEXT not in named:
            left = without_only_text(table, left)
        if key == LABEL and task == "multi-label-classification" and key not in named:
            found[key] = several_labels(table, left) or guess_label(table, left)
        elif key == NUMBERS:
            found |= {key: target} if (target := _named_target(table, named) or find_target(table, left)) else {}
        elif key not in named:
            found[key] = _GUESS[key](table, left)
    own = {key: column for key, column in named.items() if key != LABEL or column not in found.values()}
    return Roles(task, {**own, **found})


def _guess_task(table: Table, named: Mapping[str, str], by: str | None) -> str:
    if asks_for_pairs(table, named, None):
        return "preference"
    if PROMPT in named or (LABEL not in named and _pair(table)):
        return "causal-lm"
    if TAGS in named or TOKENS in named:
        return "token-classification"
    free = [column for column in table.columns if column not in (*named.values(), by)]
    if LABEL not in named and TEXT not in named and words_and_tags(table, free):
        return "token-classification"
    if IMAGE in named or (TEXT not in named and _image_columns(table)):
        _check_classes(table, named, [column for column in free if column not in _image_columns(table)])
        return "image-classification"
    if LABEL in named:
        several, target = holds_lists(table, named[LABEL]), _named_target(table, named)
    else:
        several, target = several_labels(table, free) is not None, find_target(table, free)
    if several:
        return "multi-label-classification"
    return "sequence-classification" if target is None else "regression"


def _check_classes(table: Table, named: Mapping[str, str], free: Sequence[str]) -> None:
    """Refuse images whose answers are numbers."""
    target = _named_target(table, named) if LABEL in named else find_target(table, free)
    if target is not None:
        raise InputError(
            f"{table.where}: column {target!r} holds numbers, and numbers cannot be predicted from images; write a "
            "column of classes, such as ranges of them, and name it with data.label (--label)"
        )


def _named_target(table: Table, named: Mapping[str, str]) -> str | None:
    """Return the column that the recipe names for labels, if it holds numbers that are measured."""
    label = named.get(LABEL)
    return label if label is not None and holds_measurements(table, label) else None


_KEYS: Mapping[str, tuple[str, ...]] = {
    "sequence-classification": (LABEL, TEXT),
    "multi-label-classification": (LABEL, TEXT),
    "regression": (NUMBERS, TEXT),
    "image-classification": (IMAGE, LABEL),
    "token-classification": (TAGS, TOKENS),
}


def _of_language(table: Table, named: Mapping[str, str]) -> Mapping[str, str]:
    """Return the columns of a language model: a pair of prompt and completion, else one of texts."""
    if PROMPT in named or TEXT in named:
        return named
    if pair := pair_of(list(table.columns), (*ANSWER_PAIRS, *QUESTION_PAIRS)):
        return {**named, PROMPT: pair[0], COMPLETION: pair[1]}
    return {**named, TEXT: guess_text(table, list(plain_columns(table)))}


def _of_preference(table: Table, named: Mapping[str, str]) -> Mapping[str, str]:
    """Return the columns of a prompt and its two answers.

    Raises:
        InputError: a column that is not named has no usual name.
    """
    usual = {PROMPT: PROMPT_NAMES, CHOSEN: ("chosen",), REJECTED: ("rejected",)}
    found = dict(named)
    for key, names in usual.items():
        if key in named:
            continue
        column = first_of(list(table.columns), names)
        if column is None:
            raise InputError(
                f"{table.where}: no column is called {' or '.join(names)} (it has {', '.join(table.columns)}); a "
                f"preference has a prompt, a chosen and a rejected answer: name the column with {key}"
            )
        found[key] = column
    return found


def guess_text(table: Table, free: Sequence[str]) -> str:
    """Return the column with a common name for texts, else the one with the most characters, and none of numbers.

    Raises:
        InputError: no column holds texts.
    """
    if named := first_of(single_columns(table, free), TEXT_NAMES):
        return named
    texts = text_columns(table, free)
    if not texts and _image_columns(table):
        raise InputError(
            f"{table.where}: no column is left for the texts; numbers cannot be predicted from images: write a column "
            "of classes, such as ranges of the numbers, and name it with data.label (--label)"
        )
    if not texts:
        raise InputError(
            f"{table.where}: no column is left for the texts (it has {', '.join(table.columns)}, and columns of "
            "numbers are none); name one with data.text (--text)"
        )
    return max(texts, key=lambda column: sum(map(len, texts[column])))


def _guess_image(table: Table, free: Sequence[str]) -> str:
    found = [column for column in _image_columns(table) if column in free]
    if not found:
        raise InputError(f"{table.where}: no column holds images or the paths of images; name it with data.image")
    return found[0]


def _guess_tags(table: Table, free: Sequence[str]) -> str:
    return _guess_lists(table, free, TAG_NAMES, TAGS)


def _guess_tokens(table: Table, free: Sequence[str]) -> str:
    return _guess_lists(table, free, TOKEN_NAMES, TOKENS)


def _guess_lists(table: Table, free: Sequence[str], names: Sequence[str], key: str) -> str:
    found = first_of([column for column in free if holds_lists(table, column)], names)
    if found is None:
        raise InputError(
            f"{table.where}: no column of lists is called {' or '.join(names)} (it has {', '.join(table.columns)}); "
            f"name it with {key}"
        )
    return found


_GUESS = {
    LABEL: guess_label,
    TEXT: guess_text,
    IMAGE: _guess_image,
    TAGS: _guess_tags,
    TOKENS: _guess_tokens,
}


def _pair(table: Table) -> tuple[str, str] | None:
    """Return the columns of prompts and completions, where both have a usual name.

    Answers of which few differ are labels, if questions stand beside them.
    """
    if pair := pair_of(list(table.columns), ANSWER_PAIRS):
        return pair
    pair = pair_of(list(plain_columns(table)), QUESTION_PAIRS)
    if pair is None or first_of(list(table.columns), LABEL_NAMES):
        return None
    return pair if len(set(table.columns[pair[1]])) * ROWS_AN_ANSWER > table.num_rows else None


def _image_columns(table: Table) -> list[str]:
    """Return the columns that hold images, or paths of image files."""
    return [column for column in table.columns if _holds_images(table.columns[column][:LOOKED_AT])]


def _holds_images(values: Sequence[Any]) -> bool:
    return bool(len(values)) and all(
        isinstance(value, bytes)
        or (isinstance(value, dict) and "bytes" in value)
        or (isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES))
        for value in values
    )
