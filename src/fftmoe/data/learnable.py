"""Refuses rows of which the model would see nothing: all of them in one message, before training."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fftmoe.data.table import Origin
from fftmoe.data.targets import TaggedText
from fftmoe.data.tokens import IGNORED, TokenizedText
from fftmoe.errors import InputError
from fftmoe.shown import count_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_NAMED = 5
_FRAMES = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "pad_token_id")


def check_content(origin: Origin, texts: TokenizedText, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse texts that have only the tokens with which the tokenizer frames every text.

    A tokenizer drops characters that it does not know, such as control characters and spaces without width.

    Args:
        origin: of the texts, for the message.

    Raises:
        InputError: names the number of such texts and the first rows.
    """
    _refuse_useless_rows(
        origin,
        texts.offsets,
        ~np.isin(texts.input_ids.numpy(), list(_frames(tokenizer))),
        "no token that the model can read, because this tokenizer drops all of their characters",
    )


def has_content(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[bool]:
    """Return for each text whether it has a token besides those with which the tokenizer frames every text."""
    frames = _frames(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return [any(token not in frames for token in row) for row in rows]


def _frames(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens with which the tokenizer frames a text."""
    return {number for name in _FRAMES if isinstance(number := getattr(tokenizer, name, None), int)}


def check_tagged(origin: Origin, examples: TaggedText, max_length: int) -> None:
    """Refuse texts without a tagged token: no tagged word has a token, or `max_length` cut them all.

    Raises:
        InputError: names the number of such texts and the first rows.
    """
    tags = examples.tags
    _refuse_useless_rows(
        origin,
        tags.offsets,
        tags.input_ids.numpy() != IGNORED,
        f"no word that this tokenizer can read within data.max_length={max_length} tokens",
    )


def _refuse_useless_rows(origin: Origin, offsets_N1: Tensor, useful: np.ndarray, problem: str) -> None:
    """Refuse rows without a useful token; `useful` is bool, one for each token of all rows."""
    before = np.concatenate([[0], useful.cumsum()])
    bad = np.flatnonzero(np.diff(before[offsets_N1.numpy()]) == 0)
    if len(bad):
        raise InputError(
            f"{origin}: in {len(bad)} of {count_of(len(offsets_N1) - 1, 'row')} ({_row_names(origin, bad)}) there is "
            f"{problem}; remove or correct these rows"
        )


def _row_names(origin: Origin, rows: Collection[int]) -> str:
    """Return the names of the first rows."""
    first = ", ".join(origin.row(row) for row in list(rows)[:ROWS_NAMED])
    return f"row {first}" if len(rows) == 1 else f"rows {first}{', …' * (len(rows) > ROWS_NAMED)}"
