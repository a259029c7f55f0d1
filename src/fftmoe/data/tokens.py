"""Holds texts as token ids: stored without padding, and padded batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from fftmoe.errors import InputError
from fftmoe.shown import count_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that are tokenized in one call, which bounds the memory of the tokenizer's objects for each text.
CHUNK_TEXTS = 4096
IGNORED = -100  # the label of a token without one, as in transformers


@dataclass(frozen=True)
class TokenizedText:
    """Holds N tokenized texts with their labels.

    Attributes:
        input_ids: int32 [total tokens], the texts one after another.
        offsets: int64 [N + 1]; text i is `input_ids[offsets[i]:offsets[i + 1]]`.
        labels: int64 [N].
        pad_id: the token id that fills the shorter rows of a batch; they are masked, so any id can be used.
    """

    input_ids: Tensor
    offsets: Tensor
    labels: Tensor
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Return the number of tokens of each text, int64 [N]."""
        return self._lengths

    @cached_property
    def _lengths(self) -> Tensor:  # found once: a batch of few examples must not cost as much as all of them
        return self.offsets.diff()

    def select(self, indices: Tensor | np.ndarray | Sequence[int]) -> "TokenizedText":
        """Return the texts at `indices`, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        ids = [self.input_ids[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths[rows].cumsum(0)])
        return TokenizedText(torch.cat([self.input_ids[:0], *ids]), offsets, self.labels[rows], self.pad_id)

    def batch(self, indices: Tensor | np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """Return the texts at `indices`, padded on the right to the longest of them.

        Returns:
            `input_ids` and `attention_mask`, int64 [B, S], and `labels`, int64 [B].
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        lengths = self.lengths[rows]
        columns = torch.arange(int(lengths.max()))
        mask_BS = columns < lengths[:, None]
        # Padding positions point at the text's first token, a valid place to read from, before they are
        # overwritten.
        source_BS = self.offsets[rows][:, None] + columns * mask_BS
        input_ids_BS = self.input_ids[source_BS].long().masked_fill(~mask_BS, self.pad_id)
        return {"input_ids": input_ids_BS, "attention_mask": mask_BS.long(), "labels": self.labels[rows]}


@dataclass(frozen=True)
class AnsweredText:
    """Holds N tokenized texts with more than a class each: the members of `Examples` except `select` and `batch`."""

    texts: TokenizedText

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labels(self) -> Tensor:
        """Return the stratum of each text, int64 [N]; the model does not see it."""
        return self.texts.labels

    @property
    def lengths(self) -> Tensor:
        """Return the number of tokens of each text, int64 [N]."""
        return self.texts.lengths


def tokenize_texts(
    texts: Sequence[str], labels: np.ndarray, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> TokenizedText:
    """Tokenize with the tokenizer's special tokens, truncated to `max_length` tokens.

    Args:
        texts: N texts.
        labels: integers [N].
        tokenizer: a transformers tokenizer, fast or slow.
        max_length: tokens per text, special tokens included.

    Raises:
        InputError: `max_length` leaves no room for text, or a text has no token at all.
    """
    if max_length <= tokenizer.num_special_tokens_to_add():
        raise InputError(
            f"data.max_length={max_length} leaves no room for text: this tokenizer adds "
            f"{count_of(tokenizer.num_special_tokens_to_add(), 'special token')}; raise data.max_length"
        )
    ids: list[np.ndarray] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        chunk = tokenizer(list(texts[start : start + CHUNK_TEXTS]), truncation=True, max_length=max_length)
        ids.extend(np.asarray(row, dtype=np.int32) for row in chunk["input_ids"])
    if (row := next((row for row, own in enumerate(ids) if not len(own)), None)) is not None:
        raise InputError(
            f"text {texts[row]!r} (row {row + 1}) has no token in this tokenizer's vocabulary; remove the row"
        )
    return flat_texts(ids, labels, pad_id_of(tokenizer))


def lengths_of(texts: Sequence[str] | Sequence[list[str]], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens of each text, or of each list of words, with the tokenizer's special tokens, uncut."""
    lengths: list[int] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        chunk = texts[start : start + CHUNK_TEXTS]
        # Not verbose: it would warn about long texts, which a run cuts.
        in_words = bool(chunk) and not isinstance(chunk[0], str)
        encoded: Any = tokenizer(cast(Any, list(chunk)), is_split_into_words=in_words, verbose=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
    return lengths


def flat_texts(ids: Sequence[np.ndarray], labels: np.ndarray, pad_id: int) -> TokenizedText:
    """Return texts from the token ids of each, int32."""
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    return TokenizedText(
        input_ids=torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *ids])),
        offsets=torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int64)),
        labels=torch.from_numpy(np.array(labels, dtype=np.int64)),
        pad_id=pad_id,
    )


def pad_id_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the padding token, else of the end-of-text token (GPT-2 and Llama have no padding token),
    else 0.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0
