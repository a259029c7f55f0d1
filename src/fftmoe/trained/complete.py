"""Completes prompts with the language model of a finished run."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fftmoe.backbones import (
    NO_ANSWER,
    Decoding,
    TextInPieces,
    check_finite_outputs,
    check_vocabulary,
    continuations,
    end_ids_of,
    load_tokenizer,
    readable_tokens,
    text_of,
)
from fftmoe.data import pad_id_of, tokenize_prompts
from fftmoe.errors import InputError
from fftmoe.shown import count_of
from fftmoe.trained.run import TrainedModel

MAX_NEW_TOKENS = 64
Completion = dict[str, str | None]


@dataclass(frozen=True)
class Writing:
    """Says how prompts are completed.

    Attributes:
        batch_size: prompts in a batch.
        on_text: is given the text of the first completion piece by piece; for one prompt.
    """

    decoding: Decoding
    batch_size: int
    on_text: Callable[[str], None] | None = None

    def to(self, on_text: Callable[[str], None]) -> "Writing":
        """Return the same, with another place for the text."""
        return replace(self, on_text=on_text)


def completions(trained: TrainedModel, prompts: Sequence[str], writing: Writing) -> Iterator[Completion]:
    """Complete prompts, which are tokenized as in training.

    Neighbours share a batch, and their completions come as soon as it is done.

    Returns:
        `{"prompt", "completion"}` for each prompt, in their order. A prompt that is longer, with its completion, than
        what the model can read, or has outputs that are not finite, has the completion None and a `"reason"`. The last
        one raises RunError if no output is finite.

    Raises:
        InputError: no prompt is short enough.
    """
    tokenizer, most = load_tokenizer(trained.run.backbone.model), writing.decoding.max_new_tokens
    ids, positions = _tokens_of(trained, prompts, tokenizer), readable_tokens(trained.model)
    fits = _which_fit([len(own) for own in ids], most, positions)
    batches = [
        [row for row in range(start, min(start + writing.batch_size, len(ids))) if fits[row]]
        for start in range(0, len(ids), writing.batch_size)
    ]
    found = _texts(trained, ids, [rows for rows in batches if rows], tokenizer, writing)
    readable = "what" if positions is None else f"the {count_of(positions, 'token')} that"
    too_long = f"the prompt and {count_of(most, 'new token')} go beyond {readable} the model can read"
    return _with_reasons(prompts, fits, found, too_long)


def _with_reasons(
    prompts: Sequence[str], fits: Sequence[bool], found: Iterator[str | None], too_long: str
) -> Iterator[Completion]:
    """Yield the answer to each prompt, with the reason where it has no completion."""
    sound = []
    for prompt, fit in zip(prompts, fits, strict=True):
        text = next(found) if fit else None
        sound += [text is not None] * fit
        answer = {"prompt": prompt, "completion": text}
        yield answer if text is not None else {**answer, "reason": NO_ANSWER if fit else too_long}
    if not any(sound):
        check_finite_outputs(torch.tensor(sound))


def _tokens_of(trained: TrainedModel, prompts: Sequence[str], tokenizer: Any) -> list[Tensor]:
    """Return the tokens of each prompt, as in training; say how many prompts were cut."""
    form = trained.run.inputs
    ids, num_cut = tokenize_prompts(prompts, tokenizer, form.max_length, form.chat_template)
    check_vocabulary(
        trained.model, max((int(own.max()) for own in ids if len(own)), default=-1), trained.run.backbone.model
    )
    if num_cut:
        logging.getLogger(__name__).warning(
            "the run cuts %d of %s, at %s (data.max_length): their beginning is not read",
            *(num_cut, count_of(len(prompts), "prompt"), count_of(form.max_length, "token")),
        )
    return ids


def _texts(
    trained: TrainedModel,
    ids: Sequence[Tensor],
    batches: Sequence[Sequence[int]],
    tokenizer: Any,
    writing: Writing,
) -> Iterator[str | None]:
    """Yield the completion of each prompt of these batches, in their order; None where an output is not finite."""
    pieces = None if writing.on_text is None else TextInPieces(tokenizer, writing.on_text)
    for _, new in continuations(
        trained.model,
        ids,
        batches,
        writing.decoding,
        end_ids=end_ids_of(trained.model, tokenizer, trained.run.inputs.chat_template),
        pad_id=pad_id_of(tokenizer),
        on_token=None if pieces is None else pieces.add,
    ):
        yield None if new is None else text_of(tokenizer, new)


def _which_fit(lengths: Sequence[int], max_new_tokens: int, positions: int | None) -> list[bool]:
    """Return whether the model can read each prompt with its completion.

    Raises:
        InputError: there are prompts, and it can read none of them.
    """
    if positions is None:
        return [True] * len(lengths)
    fits = [length + max_new_tokens <= positions for length in lengths]
    if lengths and not any(fits):
        raise InputError(
            f"a prompt of {count_of(max(lengths), 'token')} and {count_of(max_new_tokens, 'new token')} go beyond the "
            f"{count_of(positions, 'token')} that this model can read; lower --max-new-tokens, or shorten the prompt"
        )
    return fits
