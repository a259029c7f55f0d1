"""Complete prompts with the language model of a finished run."""

from collections.abc import Sequence

import numpy as np

from fftmoe.backbones import continue_greedily, load_tokenizer, readable_tokens
from fftmoe.data import tokenize_completions
from fftmoe.errors import InputError
from fftmoe.trained.run import TrainedModel

MAX_NEW_TOKENS = 64


def complete(
    trained: TrainedModel, prompts: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[dict[str, str]]:
    """Greedy completions of prompts, which are tokenized as in training.

    Returns:
        `{"prompt", "completion"}` for each prompt.

    Raises:
        InputError: `max_new_tokens` is below 1, or a prompt and its completion are longer than the model can read.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} is below 1; set it to at least 1")
    run, model = trained.run, trained.model
    tokenizer = load_tokenizer(run.backbone.model)
    # Training cuts a prompt so that its completion has room. The completion is not known yet, so "x" takes its place.
    completions, strata = ["x"] * len(prompts), np.zeros(len(prompts), dtype=np.int64)
    tokenized = tokenize_completions(
        "the prompts", prompts, completions, strata, tokenizer, run.inputs.max_length, run.inputs.chat_template
    )
    ids = [tokenized.text(row)[0] for row in range(len(tokenized))]
    positions, longest = readable_tokens(model), max(map(len, ids))
    if positions is not None and longest + max_new_tokens > positions:
        raise InputError(
            f"a prompt of {longest} tokens and {max_new_tokens} new tokens go beyond the {positions} tokens that this "
            "model can read; lower --max-new-tokens, or shorten the prompt"
        )
    end_id = tokenizer.eos_token_id
    assert isinstance(end_id, int), "tokenize_completions refuses a tokenizer without an end token"
    generated = continue_greedily(
        model, ids, max_new_tokens, end_id=end_id, pad_id=tokenized.texts.pad_id, batch_size=batch_size
    )
    texts = [str(tokenizer.decode(new, skip_special_tokens=True)) for new in generated]
    return [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=True)]
