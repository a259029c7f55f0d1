"""Holds pairs of answers to a prompt, one of which was preferred: one example with two texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.data.completions import Completions, Ids, tokenize_completions
from fftmoe.data.examples import Examples, Rows
from fftmoe.data.table import Origin
from fftmoe.data.tokens import flat_texts
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_LIMIT = 2**31  # tokens, more than any text has
Pair = tuple[Ids, Ids, Ids]  # a prompt, its chosen answer and its rejected one


@dataclass(frozen=True)
class Preferences:
    """Holds N pairs of answers, each with its prompt.

    Attributes:
        answers: 2 N texts: text i is the prompt of pair i with the chosen answer, and text N + i that with the rejected
            one; `Completions`, perhaps with cached states.
        reference: float32 [N, 2], the log-probabilities of both answers under the frozen backbone; zeros where the loss
            has no reference, or before they are computed (`fftmoe.backbones.pairs`).
    """

    answers: Examples
    reference: Tensor

    def __len__(self) -> int:
        return len(self.reference)

    @property
    def labels(self) -> Tensor:
        """Return the stratum of each pair, int64 [N]; the model does not see it."""
        return self.answers.labels[: len(self)]

    @property
    def lengths(self) -> Tensor:
        """Return the number of tokens of both texts of each pair together, int64 [N]."""
        return self._lengths

    @cached_property
    def _lengths(self) -> Tensor:
        return self.answers.lengths.view(2, -1).sum(0)

    def rows_of_answers(self, rows: Rows) -> Tensor:
        """Return the rows of `answers` that belong to the pairs at `rows`: first all chosen, then all rejected ones."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return torch.cat([rows, rows + len(self)])

    def select(self, rows: Rows, /) -> "Preferences":
        """Return the pairs at `rows`, in that order."""
        own = self.rows_of_answers(rows)
        return Preferences(self.answers.select(own), self.reference[own[: len(own) // 2]])

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Return the batch of the 2 B texts of the pairs at `rows`, the chosen ones first, and `reference` [B, 2]."""
        own = self.rows_of_answers(rows)
        return {**self.answers.batch(own), "reference": self.reference[own[: len(own) // 2]]}


def tokenize_preferences(
    origin: Origin,
    prompts: Sequence[str],
    answers: tuple[Sequence[str], Sequence[str]],
    labels: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    chat_template: bool = False,
) -> Preferences:
    """Tokenize prompts with two answers each, as `tokenize_completions` does with one.

    Both answers of a pair follow the same tokens: a prompt is cut to the room that the longer answer leaves. An answer
    without a prompt's last token before it could not be learned, so one token of the prompt always stays. The numbers
    of cut pairs, and of pairs whose answers are equal as the model reads them, are logged.

    Args:
        origin: of the rows, for messages.
        prompts: N prompts. answers: N chosen and N rejected ones.
        labels: integers [N], the stratum of each pair.
        max_length: tokens of a prompt and an answer together.
        tokenizer, chat_template: see `tokenize_completions`.

    Raises:
        InputError: see `tokenize_completions`; or the two answers are equal in every row.
    """
    if max_length < 2:
        raise InputError(f"data.max_length={max_length} leaves nothing to predict; raise it to at least 2")
    chosen, rejected = (
        tokenize_completions(origin, prompts, own, labels, tokenizer, NO_LIMIT, chat_template) for own in answers
    )
    whole = [(*_ids(chosen, row), _ids(rejected, row)[1]) for row in range(len(chosen))]
    kept = [_cut_pair(*pair, max_length, tokenizer.bos_token_id) for pair in whole]
    _check_preferred(origin, kept)
    texts = [[*prompt, *own[side]] for side in (0, 1) for prompt, *own in kept]
    rows = [np.asarray(text, dtype=np.int32) for text in texts]
    starts = torch.tensor([len(prompt) for prompt, *_ in kept] * 2, dtype=torch.int64)
    tokenized = Completions(flat_texts(rows, np.tile(labels, 2), chosen.texts.pad_id), starts)
    return Preferences(tokenized, torch.zeros(len(kept), 2))


def _ids(texts: Completions, row: int) -> tuple[Ids, Ids]:
    prompt, learned = texts.text(row)
    return prompt.tolist(), learned.tolist()


def _cut_pair(prompt: Ids, chosen: Ids, rejected: Ids, max_length: int, begin: Any) -> Pair:
    """Shorten the answers, and then the prompt, so that it fits before both; a leading `begin` stays."""
    most = max_length - min(len(prompt), 1)
    chosen, rejected = chosen[:most], rejected[:most]
    room = max_length - max(len(chosen), len(rejected))
    if len(prompt) <= room:
        return prompt, chosen, rejected
    if prompt[0] == begin and room > 1:
        return [prompt[0], *prompt[len(prompt) - room + 1 :]], chosen, rejected
    return prompt[len(prompt) - room :], chosen, rejected


def _check_preferred(origin: Origin, kept: Sequence[Pair]) -> None:
    """Refuse rows of which no pair says anything; `lost.py: equal_notes` says how many these are."""
    equal = sum(chosen == rejected for _, chosen, rejected in kept)
    if equal == len(kept):
        raise InputError(
            f"{origin}: the chosen and the rejected answer are equal in every row as the model reads them, so there is "
            "nothing to prefer; name other columns with data.chosen and data.rejected, or raise data.max_length"
        )


def num_equal(examples: Preferences) -> int:
    """Return how many pairs have equal answers, as the model reads them."""
    assert isinstance(examples.answers, Completions), "asked of pairs as they were read"
    texts = examples.answers.texts
    ids, size = texts.input_ids.numpy(), len(examples)
    found = [ids[start:end].tobytes() for start, end in pairwise(texts.offsets.tolist())]
    return sum(chosen == rejected for chosen, rejected in zip(found[:size], found[size:], strict=True))
