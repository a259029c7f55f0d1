"""Tokenizes texts for a language model: token ids, and the first token of each text that is learned."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fftmoe.data.chat_templates import ChatWriter, around_answers, chat_exchanges, unquoted_parts
from fftmoe.data.chats import messages_of, plain_prompt
from fftmoe.data.examples import Rows
from fftmoe.data.table import Origin
from fftmoe.data.tokens import CHUNK_TEXTS, IGNORED, AnsweredText, flat_texts, pad_id_of
from fftmoe.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(frozen=True)
class Completions(AnsweredText):
    """Holds N tokenized texts, each learned from one of its tokens onwards.

    Attributes:
        starts: int64 [N], the first token of each text that is learned: 0, or where the completion begins.
    """

    starts: Tensor

    def text(self, row: int) -> tuple[Tensor, Tensor]:
        """Return the token ids of one text before its first learned token, and from there on; int64 each."""
        offsets, start = self.texts.offsets, int(self.starts[row])
        ids = self.texts.input_ids[offsets[row] : offsets[row + 1]].long()
        return ids[:start], ids[start:]

    def select(self, rows: Rows, /) -> "Completions":
        """Return the texts at `rows`, in that order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return Completions(self.texts.select(rows), self.starts[rows])

    def batch(self, rows: Rows, /) -> dict[str, Tensor]:
        """Return the texts at `rows`, padded on the right to the longest of them.

        Returns:
            `input_ids`, `attention_mask` and `labels`, int64 [B, S]; a label is the token itself if it is learned,
            else -100.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        batch = self.texts.batch(rows)
        columns = torch.arange(batch["input_ids"].shape[1])
        learned_BS = (columns >= self.starts[rows][:, None]) & batch["attention_mask"].bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~learned_BS, IGNORED)}


def tokenize_completions(
    origin: Origin,
    prompts: Sequence[str] | None,
    texts: Sequence[str],
    labels: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    chat_template: bool = False,
) -> Completions:
    """Tokenize prompts with their completions, or texts that are learned from their first token.

    A prompt and its completion are tokenized separately, so that the model is trained on exactly the tokens that it
    will be asked to continue. A completion or a text ends with the tokenizer's end-of-text token.

    A row that is longer than `max_length` is cut: first the beginning of its prompt, so that the completion stays whole
    (a leading begin-of-text token stays too); then the end of the completion or text, with its end-of-text token.
    `lost.py: cut_notes` says how many rows this concerns.

    Args:
        origin: of the texts, for messages.
        prompts: N prompts, or None to learn whole texts.
        texts: N texts that are learned: the completions if there are prompts.
        labels: integers [N], the stratum of each text.
        tokenizer: with an end-of-text token.
        max_length: tokens of a prompt and its completion together.
        chat_template: write both as messages of a user and an assistant, as the tokenizer's template does.

    Raises:
        InputError: `max_length` is below 2; the tokenizer has no end-of-text token, or no chat template although it is
            asked for; nothing is left to learn of a row.
    """
    end = _end_of_text(tokenizer, max_length)
    whole = _prompts_and_texts(origin, prompts, texts, tokenizer, chat_template, end)
    nothing = tokenize_answers([""], tokenizer, chat_template)[0]
    _check_learnable(origin, texts, [text for _, text in whole], (tokenizer.bos_token_id, end), nothing)
    kept = [_cut(prompt, text, max_length, tokenizer.bos_token_id) for prompt, text in whole]
    rows = [np.asarray([*prompt, *text], dtype=np.int32) for prompt, text in kept]
    starts = torch.tensor([len(prompt) for prompt, _ in kept], dtype=torch.int64)
    return Completions(flat_texts(rows, labels, pad_id_of(tokenizer)), starts)


def tokenize_prompts(
    prompts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", max_length: int, chat_template: bool = False
) -> tuple[list[Tensor], int]:
    """Tokenize prompts that have no completion yet, as `tokenize_completions` does those that have.

    A longer prompt than `max_length` - 1, which leaves a token for a completion, loses its beginning.

    Returns:
        the token ids of each prompt, int64 [S]; and how many prompts were cut.

    Raises:
        InputError: as `tokenize_completions`.
    """
    end = _end_of_text(tokenizer, max_length)
    if chat_template:
        writer = ChatWriter.of(tokenizer)
        written = [writer.write(messages_of(prompt), answer=False) for prompt in prompts]
    else:
        written = [plain_prompt(prompt) for prompt in prompts]
    whole = [_without_end(ids, end) for ids in _ids(tokenizer, written, special=not chat_template)]
    kept = [_cut(ids, [end], max_length, tokenizer.bos_token_id)[0] for ids in whole]
    num_cut = sum(len(short) < len(ids) for short, ids in zip(kept, whole, strict=True))
    return [torch.tensor(ids, dtype=torch.int64) for ids in kept], num_cut


def tokenize_answers(
    answers: Sequence[str], tokenizer: "PreTrainedTokenizerBase", chat_template: bool = False
) -> list[list[int]]:
    """Return the tokens of each answer with its end, as they would be learned after a prompt.

    Raises:
        InputError: as `tokenize_completions`.
    """
    end = _end_of_text(tokenizer, 2)
    before, after = around_answers(tokenizer) if chat_template else ("", "")
    whole = _ids(tokenizer, [f"{before}{answer}{after}" for answer in answers], special=False)
    return [_with_end(ids, end, ended=chat_template and end in ids) for ids in whole]


def continued(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Completions:
    """Return prompts and what is learned after each, as token ids; all of one stratum."""
    rows = [np.asarray([*prompt, *answer], dtype=np.int32) for prompt, answer in pairs]
    starts = torch.tensor([len(prompt) for prompt, _ in pairs], dtype=torch.int64)
    return Completions(flat_texts(rows, np.zeros(len(rows), dtype=np.int64), pad_id), starts)


def lengths_with_completions(
    prompts: Sequence[str] | None,
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: bool = False,
) -> list[int]:
    """Return the tokens of each prompt and its text together, uncut; see `tokenize_completions`.

    Raises:
        InputError: the tokenizer has no end-of-text token, or no chat template although it is asked for.
    """
    end = _end_of_text(tokenizer, 2)
    whole = _prompts_and_texts(Origin("the texts"), prompts, texts, tokenizer, chat_template, end)
    return [len(prompt) + len(text) for prompt, text in whole]


def _end_of_text(tokenizer: "PreTrainedTokenizerBase", max_length: int) -> int:
    """Return the id of the token that ends a text."""
    if max_length < 2:
        raise InputError(f"data.max_length={max_length} leaves nothing to predict; raise it to at least 2")
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no end-of-text token (eos_token), with which a text ends;"
            " name it in the model's tokenizer_config.json, or use a language model's tokenizer"
        )
    return end


def _prompts_and_texts(
    origin: Origin,
    prompts: Sequence[str] | None,
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    chat_template: bool,
    end: int,
) -> list[tuple[Ids, Ids]]:
    """Return the tokens of every prompt and of its text, which ends with `end`; without prompts,
    each prompt is empty.
    """
    if prompts is None:
        assert not chat_template, "a chat template writes prompts with their completions"
        return [([], _with_end(text, end, ended=False)) for text in _ids(tokenizer, texts, special=True)]
    if chat_template:
        prompts, texts = chat_exchanges(origin, prompts, texts, tokenizer)
    else:
        prompts = [plain_prompt(prompt) for prompt in prompts]
    asked, answers = _ids(tokenizer, prompts, special=not chat_template), _ids(tokenizer, texts, special=False)
    return [
        (_without_end(prompt, end), _with_end(text, end, ended=chat_template and end in text))
        for prompt, text in zip(asked, answers, strict=True)
    ]


def _check_learnable(
    origin: Origin, texts: Sequence[str], text_ids: Sequence[Ids], silent: Collection[Any], nothing: Ids
) -> None:
    """Refuse a text of which the tokenizer knows no token.

    Args:
        silent: the tokens that say nothing. nothing: what a chat template writes around an empty answer.
    """
    for row, ids in enumerate(text_ids):
        if all(token in silent for token in ids) or ids == nothing:
            raise InputError(
                f"{origin}: nothing of {texts[row]!r:.80} (row {origin.row(row)}) is left to learn, because this "
                "tokenizer's "
                "vocabulary has no token for it; remove the row"
            )


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool) -> list[Ids]:
    found: list[Ids] = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        chunk = list(texts[start : start + CHUNK_TEXTS])
        # Not verbose: it would warn about long texts, which are cut here.
        found.extend(tokenizer(chunk, add_special_tokens=special, verbose=False)["input_ids"])
    for row, text in enumerate(texts):
        if len(parts := unquoted_parts(text)) > 1:
            found[row] = _ids_of_parts(tokenizer, parts)
    return found


def _ids_of_parts(tokenizer: "PreTrainedTokenizerBase", parts: Sequence[tuple[str, bool]]) -> Ids:
    """Return the tokens of a text in parts, of which some only look like special tokens."""
    encoded = [
        tokenizer(part, add_special_tokens=False, split_special_tokens=looks_special, verbose=False)["input_ids"]
        for part, looks_special in parts
    ]
    return [token for ids in encoded for token in ids]


def _without_end(ids: Ids, end: int) -> Ids:
    """Return a prompt without an end token, which some tokenizers add to every text."""
    return ids[:-1] if ids and ids[-1] == end else ids


def _with_end(text: Ids, end: int, ended: bool) -> Ids:
    """Return the text with an end token; a chat template may have put one before its own last tokens."""
    return text if ended or (text and text[-1] == end) else [*text, end]


def _cut(prompt: Ids, learned: Ids, max_length: int, begin: Any) -> tuple[Ids, Ids]:
    """Shorten the prompt and the learned tokens to `max_length` together; the prompt keeps at least one token."""
    learned = learned[: max_length - min(len(prompt), 1)]
    room = max_length - len(learned)
    if len(prompt) <= room:
        return prompt, learned
    if prompt[0] == begin and room > 1:
        return [prompt[0], *prompt[len(prompt) - room + 1 :]], learned
    return prompt[len(prompt) - room :], learned
