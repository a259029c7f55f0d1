"""Texts that a language model learns to continue: token ids, and from which of them on they are learned."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from fftmoe.data.examples import Rows
from fftmoe.data.prompts import PromptSplit
from fftmoe.data.tokens import CHUNK_TEXTS, IGNORED, AnsweredText, flat_texts, pad_id_of
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(frozen=True)
class Completions(AnsweredText):
    """N tokenized texts, each learned from one of its tokens on.

    Attributes:
        starts: int64 [N], the first token of each text that is learned: 0, or where the completion begins.
    """

    starts: Tensor

    def text(self, row: int) -> tuple[Tensor, Tensor]:
        """The token ids of one text that come before those that are learned, and these; int64 each."""
        offsets, start = self.texts.offsets, int(self.starts[row])
        ids = self.texts.input_ids[offsets[row] : offsets[row + 1]].long()
        return ids[:start], ids[start:]

    def select(self, rows: Rows, /) -> "Completions":
        """The texts at `rows`, in that order, as a set of its own."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return Completions(self.texts.select(rows), self.starts[rows])

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """The texts at `rows`, padded on the right to the longest of them.

        Returns:
            `input_ids`, `attention_mask` and `labels`, int64 [B, S]; a label is the token itself where it is learned,
            and -100 elsewhere.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        batch = self.texts.batch(rows)
        columns = torch.arange(batch["input_ids"].shape[1])
        learned_BS = (columns >= self.starts[rows][:, None]) & batch["attention_mask"].bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~learned_BS, IGNORED)}


def tokenize_completions(
    split: PromptSplit, tokenizer: "PreTrainedTokenizerBase", max_length: int, chat_template: bool = False
) -> Completions:
    """Tokenize prompts with their completions, or texts that are learned whole.

    A prompt and its completion are tokenized apart, so that the model is trained on the very tokens that it will be
    asked to continue. The completion ends with the tokenizer's end-of-text token, as does a text.

    What is longer than `max_length` is cut: of a prompt the beginning, so that the completion stays whole and follows
    what it followed (a leading begin-of-text token stays too); of a completion or a text that is longer still the end,
    with its end-of-text token. How many were cut is logged.

    Args:
        tokenizer: with an end-of-text token.
        max_length: tokens of a prompt and its completion together.
        chat_template: write both as messages of a user and an assistant, as the tokenizer's template does.

    Raises:
        InputError: `max_length` is below 2; the tokenizer has no end-of-text token, or no chat template where it is
            asked for; nothing is left to learn of a row.
    """
    if max_length < 2:
        raise InputError(f"data.max_length={max_length} leaves nothing to predict; raise it to at least 2")
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-text token (eos_token), with which a text ends;"
            " use a language model's tokenizer"
        )
    first, second = _messages(split, tokenizer) if chat_template else (split.prompts, split.texts)
    prompts = None if first is None else _ids(tokenizer, first, special=not chat_template)
    texts = _ids(tokenizer, second, special=prompts is None)
    rows, starts, num_cut = [], [], 0
    for row, text in enumerate(texts):
        prompt = [] if prompts is None else _without_end(prompts[row], end)
        learned = _learned(text, end, ended=chat_template and end in text)
        if all(token in (tokenizer.bos_token_id, end) for token in text):
            raise InputError(
                f"{split.where}: nothing of {split.texts[row]!r:.80} (row {row + 1}) is left to learn, since this "
                "tokenizer's vocabulary has no token for it; remove the row"
            )
        kept = _fitted(prompt, learned, max_length, tokenizer.bos_token_id)
        num_cut += len(kept[0]) + len(kept[1]) < len(prompt) + len(learned)
        rows.append(np.asarray([*kept[0], *kept[1]], dtype=np.int32))
        starts.append(len(kept[0]))
    if num_cut:
        what = "the end of texts" if prompts is None else "the beginning of prompts, then the end of completions,"
        logging.getLogger(__name__).warning(
            "%s: %d of %d rows have more than data.max_length=%d tokens; %s was cut",
            *(split.where, num_cut, len(rows), max_length, what),
        )
    return Completions(flat_texts(rows, split.labels, pad_id_of(tokenizer)), torch.tensor(starts, dtype=torch.int64))


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool) -> list[Ids]:
    found: list[Ids] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        chunk = list(texts[start : start + CHUNK_TEXTS])
        # Not verbose: it would warn of long texts, which are cut here.
        found.extend(tokenizer(chunk, add_special_tokens=special, verbose=False)["input_ids"])
    return found


def _without_end(ids: Ids, end: int) -> Ids:
    """Some tokenizers end every text; a prompt goes on."""
    return ids[:-1] if ids and ids[-1] == end else ids


def _learned(text: Ids, end: int, ended: bool) -> Ids:
    """The text with its end, which a chat template may have given it somewhere before its own last tokens."""
    return text if ended or (text and text[-1] == end) else [*text, end]


def _fitted(prompt: Ids, learned: Ids, max_length: int, begin: Any) -> tuple[Ids, Ids]:
    """Both, cut to `max_length` together; one token of a prompt stays, for the first that is learned to follow."""
    learned = learned[: max_length - min(len(prompt), 1)]
    room = max_length - len(learned)
    if len(prompt) <= room:
        return prompt, learned
    if prompt[0] == begin and room > 1:
        return [prompt[0], *prompt[len(prompt) - room + 1 :]], learned
    return prompt[len(prompt) - room :], learned


def _messages(split: PromptSplit, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[str], list[str]]:
    """Prompts as the template writes them up to where an assistant answers, and what it then adds for the answers."""
    assert split.prompts is not None
    prompts, answers = [], []
    for row, (prompt, completion) in enumerate(zip(split.prompts, split.texts, strict=True)):
        asked = [{"role": "user", "content": prompt}]
        before = as_chat(tokenizer, asked, answer=False)
        whole = as_chat(tokenizer, [*asked, {"role": "assistant", "content": completion}], answer=True)
        if not whole.startswith(before):
            raise InputError(
                f"{split.where}: the tokenizer's chat template writes the prompt of row {row + 1} in another way once "
                "it is answered, so that where the answer begins is unknown; set data.chat_template=false"
            )
        prompts.append(before)
        answers.append(whole[len(before) :])
    return prompts, answers


def as_chat(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], answer: bool) -> str:
    """Messages as the tokenizer's chat template writes them; without an answer, up to where one begins.

    Raises:
        InputError: the tokenizer has no chat template, or it refuses these messages.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"data.chat_template=true, but the tokenizer of {tokenizer.name_or_path!r} has no chat template; set "
            "data.chat_template=false, or use a model that was trained on conversations"
        )
    try:
        return cast(str, tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer))
    except Exception as error:  # a template raises what it likes
        raise InputError(f"the tokenizer's chat template refuses a message of a user: {error}") from error
