"""Holds texts with more than one answer each: numbers, several labels, or a tag for every word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.data.examples import Rows
from fftmoe.data.table import Origin
from fftmoe.data.tokens import CHUNK_TEXTS, IGNORED, AnsweredText, TokenizedText, flat_texts, pad_id_of
from fftmoe.errors import InputError
from fftmoe.shown import count_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TargetedText(AnsweredText):
    """Holds N tokenized texts with T numbers each.

    Attributes:
        targets: float64 [N, T], the values to predict; or float32 [N, T], 1 for each label of a text and 0 for others.
    """

    targets: Tensor

    def select(self, rows: Rows, /) -> "TargetedText":
        """Return the texts at `rows`, in that order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return TargetedText(self.texts.select(rows), self.targets[rows])

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Make a batch as `TokenizedText.batch` does, with the targets as `labels`, [B, T]."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return {**self.texts.batch(rows), "labels": self.targets[rows]}


@dataclass(frozen=True)
class TaggedText(AnsweredText):
    """Holds N tokenized texts with a tag for the first token of every word.

    Attributes:
        tags: a tag in place of each token, so that tags are cut and padded as tokens are; -100 on tokens without a
            tag, and on padding.
    """

    tags: TokenizedText

    def select(self, rows: Rows, /) -> "TaggedText":
        """Return the texts at `rows`, in that order."""
        return TaggedText(self.texts.select(rows), self.tags.select(rows))

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Make a batch as `TokenizedText.batch` does, with the tags as `labels`, int64 [B, S], -100 on padding."""
        return {**self.texts.batch(rows), "labels": self.tags.batch(rows)["input_ids"]}


def several_hot(lists: Sequence[Sequence[str]], names: Sequence[str]) -> Tensor:
    """Return float32 [N, L]: 1 where a row has the name, else 0."""
    numbers = {name: number for number, name in enumerate(names)}
    targets = torch.zeros(len(lists), len(names))
    for row, own in enumerate(lists):
        targets[row, [numbers[name] for name in own]] = 1.0
    return targets


def tokenize_tagged(
    origin: Origin,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    names: Sequence[str],
    labels: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> TaggedText:
    """Tokenize texts that are already split into words; a word's tag is on its first token.

    Args:
        origin: of the texts, for messages.
        words: N texts as lists of words.
        tags: a tag for every word, each one of `names`.
        labels: integers [N], the stratum of each text.
        max_length: tokens per text; what is longer is cut.

    Raises:
        InputError: the tokenizer does not say which token belongs to which word, or `max_length` leaves no room; a row
            has no word, or not one tag for each.
    """
    _check_tagged(origin, words, tags, tokenizer, max_length)
    numbers = {name: number for number, name in enumerate(names)}
    ids: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    for start in range(0, len(words), CHUNK_TEXTS):
        chunk = [list(own) for own in words[start : start + CHUNK_TEXTS]]
        encoded: Any = tokenizer(chunk, is_split_into_words=True, truncation=True, max_length=max_length)
        for place, row_ids in enumerate(encoded["input_ids"]):
            of_word, tagged = encoded.word_ids(place), list(tags[start + place])
            firsts = [word is not None and word not in of_word[:token] for token, word in enumerate(of_word)]
            own = [numbers[tagged[w]] if first else IGNORED for w, first in zip(of_word, firsts, strict=True)]
            marks.append(np.array(own, dtype=np.int32))
            ids.append(np.asarray(row_ids, dtype=np.int32))
    return TaggedText(flat_texts(ids, labels, pad_id_of(tokenizer)), flat_texts(marks, labels, IGNORED))


def _check_tagged(
    origin: Origin,
    words: Sequence[Sequence[str]],
    tags: Sequence[Sequence[str]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> None:
    if not tokenizer.is_fast:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path!r} does not say which token belongs to which word, which token "
            "classification needs; use a model with a fast tokenizer (tokenizer.json)"
        )
    if max_length <= tokenizer.num_special_tokens_to_add():
        raise InputError(f"data.max_length={max_length} leaves no room after the special tokens; raise it")
    for row, (own, tagged) in enumerate(zip(words, tags, strict=True)):
        if not own or len(own) != len(tagged):
            raise InputError(
                f"{origin}: row {origin.row(row)} has {count_of(len(own), 'token')} and "
                f"{count_of(len(tagged), 'tag')}; give each token one"
            )
