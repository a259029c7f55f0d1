"""Texts with more than one answer each: numbers, several labels, or a tag for every word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor

from fftmoe.data.examples import Rows
from fftmoe.data.read import Table
from fftmoe.data.sources import Wanted
from fftmoe.data.tokens import CHUNK_TEXTS, IGNORED, AnsweredText, TokenizedText, flat_texts, pad_id_of
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TargetedText(AnsweredText):
    """N tokenized texts with T numbers each.

    Attributes:
        targets: float32 [N, T]: what is to be predicted, or 1 for each label that a text has and 0 for others.
    """

    targets: Tensor

    def select(self, rows: Rows, /) -> "TargetedText":
        """The texts at `rows`, in that order, as a set of its own."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return TargetedText(self.texts.select(rows), self.targets[rows])

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """As `TokenizedText.batch`, with `labels` the targets, float32 [B, T]."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return {**self.texts.batch(rows), "labels": self.targets[rows]}


@dataclass(frozen=True)
class TaggedText(AnsweredText):
    """N tokenized texts with a tag for the first token of every word.

    Attributes:
        tags: the tags in the place of the tokens, so that they are cut and padded as tokens are; -100 on tokens
            without one, and on padding.
    """

    tags: TokenizedText

    def select(self, rows: Rows, /) -> "TaggedText":
        """The texts at `rows`, in that order, as a set of its own."""
        return TaggedText(self.texts.select(rows), self.tags.select(rows))

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """As `TokenizedText.batch`, with `labels` the tags, int64 [B, S], -100 on padding."""
        return {**self.texts.batch(rows), "labels": self.tags.batch(rows)["input_ids"]}


def numbers_of(table: Table, columns: Sequence[str]) -> Tensor:
    """The finite numbers of these columns, float32 [N, T].

    Raises:
        InputError: a value is none.
    """
    found = [list(table.rows[column]) for column in columns]
    for column, values in zip(columns, found, strict=True):
        for row, value in enumerate(values, start=1):
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(
                    f"{table.where}: column {column!r} holds {value!r:.50} in row {row}, which is no finite number; "
                    "mend or remove the row, or name another column with data.targets"
                )
    return torch.tensor(found, dtype=torch.float32).T.contiguous()


def lists_of(table: Table, key: str, column: str) -> list[list[str]]:
    """The lists of texts of a column, class numbers replaced by their names; `key` is the recipe's for it.

    Raises:
        InputError: a row is no such list.
    """
    feature = getattr(table.rows.features[column], "feature", None)
    named = feature.names if isinstance(feature, datasets.ClassLabel) else None
    lists: list[list[str]] = []
    for row, value in enumerate(table.rows[column], start=1):
        own = list(value) if isinstance(value, list | tuple | np.ndarray) else None
        if own is None or not all(isinstance(item, str | int) for item in own):
            raise InputError(
                f"{table.where}: column {column!r} holds {value!r:.50} in row {row}, which is no list of names; lists "
                f"are read from .parquet and .jsonl files: mend the row, or name another column with {key}"
            )
        lists.append([named[item] if named and isinstance(item, int) else str(item) for item in own])
    return lists


def names_of(tables: dict[str, dict[str, list[list[str]]]], wanted: Wanted) -> tuple[str, ...]:
    """The names that occur in the lists of the first needed split, sorted; or those that are agreed on.

    Args:
        tables: by split, one entry: where it is from, and its lists.

    Raises:
        InputError: there are fewer than two, or another split has another.
    """
    ((where, first),) = tables[wanted.needed[0]].items()
    known = wanted.label_names or tuple(sorted({name for own in first for name in own}))
    if len(known) < 2:
        raise InputError(f"{where}: {', '.join(known) or 'no name'} is all that occurs, and at least two are needed")
    for own in tables.values():
        ((place, lists),) = own.items()
        if unknown := sorted({name for names in lists for name in names} - set(known)):
            raise InputError(
                f"{place}: {unknown[0]!r} occurs, and never in training; add training rows with it, or remove it "
                "(data.labels says what may occur)"
            )
    return known


def several_hot(lists: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    """Float32 [N, L]: 1 where a row has the name."""
    number = {name: place for place, name in enumerate(names)}
    targets = torch.zeros(len(lists), len(names))
    for row, own in enumerate(lists):
        targets[row, [number[name] for name in own]] = 1.0
    return targets


def tokenize_tagged(
    where: str,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    names: Sequence[str],
    labels: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> TaggedText:
    """Tokenize texts that are words already, truncated to `max_length` tokens; a word's tag is on its first token.

    Raises:
        InputError: the tokenizer does not tell which token is of which word, or `max_length` leaves no room; a row has
            no word, or not one tag for each.
    """
    if not tokenizer.is_fast:
        raise InputError(
            "token classification needs a tokenizer that says which token is of which word (tokenizer.json)"
        )
    if max_length <= tokenizer.num_special_tokens_to_add():
        raise InputError(f"data.max_length={max_length} leaves no room beside the special tokens; raise it")
    number = {name: place for place, name in enumerate(names)}
    ids: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    for row, (own, tagged) in enumerate(zip(words, tags, strict=True), start=1):
        if not own or len(own) != len(tagged):
            raise InputError(f"{where}: row {row} has {len(own)} tokens and {len(tagged)} tags; give each token one")
    for start in range(0, len(words), CHUNK_TEXTS):
        chunk = [list(own) for own in words[start : start + CHUNK_TEXTS]]
        found: Any = tokenizer(chunk, is_split_into_words=True, truncation=True, max_length=max_length)
        for place, row_ids in enumerate(found["input_ids"]):
            of_word, tagged = found.word_ids(place), list(tags[start + place])
            firsts = [word is not None and word not in of_word[:token] for token, word in enumerate(of_word)]
            own = [number[tagged[w]] if first else IGNORED for w, first in zip(of_word, firsts, strict=True)]
            marks.append(np.array(own, dtype=np.int32))
            ids.append(np.asarray(row_ids, dtype=np.int32))
    return TaggedText(flat_texts(ids, labels, pad_id_of(tokenizer)), flat_texts(marks, labels, IGNORED))
