"""Complete prompts with the language model of a finished run."""

from collections.abc import Sequence

import numpy as np
import torch

from fftmoe.backbones import NO_ANSWER, check_finite_outputs, greedy_continuations, load_tokenizer, readable_tokens
from fftmoe.data import Origin, tokenize_completions
from fftmoe.errors import InputError
from fftmoe.trained.run import TrainedModel

MAX_NEW_TOKENS = 64


def complete(
    trained: TrainedModel, prompts: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[dict[str, str | None]]:
    """Greedy completions of prompts, which are tokenized as in training.

    Returns:
        `{"prompt", "completion"}` for each prompt. A prompt that is longer, with its completion, than what the model
        can read, or has outputs that are not finite, has the completion None and a `"reason"`.

    Raises:
        InputError: `max_new_tokens` is below 1, or no prompt is short enough. RunError: no output is finite.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} is below 1; set it to at least 1")
    run, model = trained.run, trained.model
    tokenizer = load_tokenizer(run.backbone.model)
    # Training cuts a prompt so that its completion has room. The completion is not known yet, so "x" takes its place.
    completions, strata = ["x"] * len(prompts), np.zeros(len(prompts), dtype=np.int64)
    tokenized = tokenize_completions(
        Origin("the prompts"), prompts, completions, strata, tokenizer, run.inputs.max_length, run.inputs.chat_template
    )
    ids = [tokenized.text(row)[0] for row in range(len(tokenized))]
    positions = readable_tokens(model)
    fits = _which_fit([len(own) for own in ids], max_new_tokens, positions)
    end_id = tokenizer.eos_token_id
    assert isinstance(end_id, int), "tokenize_completions refuses a tokenizer without an end token"
    generated = greedy_continuations(
        model,
        [own for own, fit in zip(ids, fits, strict=True) if fit],
        max_new_tokens,
        end_id=end_id,
        pad_id=tokenized.texts.pad_id,
        batch_size=batch_size,
    )
    if not any(new is not None for new in generated):
        check_finite_outputs(torch.zeros(len(generated), dtype=torch.bool))
    texts = iter([None if new is None else str(tokenizer.decode(new, skip_special_tokens=True)) for new in generated])
    too_long = f"the prompt and {max_new_tokens} new tokens go beyond the {positions} tokens that the model can read"
    return [
        _completed(prompt, next(texts), NO_ANSWER) if fit else _completed(prompt, None, too_long)
        for prompt, fit in zip(prompts, fits, strict=True)
    ]


def _completed(prompt: str, completion: str | None, reason: str) -> dict[str, str | None]:
    """The answer to a prompt, with the reason where it has no completion."""
    answer = {"prompt": prompt, "completion": completion}
    return answer if completion is not None else {**answer, "reason": reason}


def _which_fit(lengths: Sequence[int], max_new_tokens: int, positions: int | None) -> list[bool]:
    """Whether the model can read each prompt with its completion.

    Raises:
        InputError: there are prompts, and it can read none of them.
    """
    fits = [positions is None or length + max_new_tokens <= positions for length in lengths]
    if lengths and not any(fits):
        raise InputError(
            f"a prompt of {max(lengths)} tokens and {max_new_tokens} new tokens go beyond the {positions} tokens that "
            "this model can read; lower --max-new-tokens, or shorten the prompt"
        )
    return fits
