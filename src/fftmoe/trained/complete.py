"""What a run's language model writes after prompts that anyone gives it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fftmoe.backbones import continue_greedily, load_tokenizer
from fftmoe.config import Recipe
from fftmoe.data import PromptSplit, tokenize_completions
from fftmoe.errors import InputError

MAX_NEW_TOKENS = 64


def complete(
    recipe: Recipe, model: Any, prompts: Sequence[str], max_new_tokens: int, batch_size: int
) -> list[dict[str, str]]:
    """`{"prompt", "completion"}` of each, the prompt made of tokens as in training.

    Raises:
        InputError: prompt and completion together are longer than the model can read.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}; at least one token is written")
    tokenizer = load_tokenizer(recipe.backbone.model)
    # Training cuts a prompt so that there is room for its completion: any stands for those that are to be written.
    unknown = PromptSplit("the prompts", ("x",) * len(prompts), tuple(prompts), np.zeros(len(prompts), dtype=np.int64))
    asked = tokenize_completions(unknown, tokenizer, recipe.data.max_length, recipe.data.chat_template)
    ids = [asked.text(row)[0] for row in range(len(asked))]
    positions, longest = getattr(model.config, "max_position_embeddings", None), max(map(len, ids))
    if positions is not None and longest + max_new_tokens > positions:
        raise InputError(
            f"a prompt of {longest} tokens with {max_new_tokens} more is beyond the {positions} that this model can "
            "read; lower --max-new-tokens, or shorten the prompt"
        )
    end_id = tokenizer.eos_token_id
    assert isinstance(end_id, int), "tokenize_completions refuses tokenizers without one"
    written = continue_greedily(
        model, ids, max_new_tokens, end_id=end_id, pad_id=asked.texts.pad_id, batch_size=batch_size
    )
    texts = [str(tokenizer.decode(new, skip_special_tokens=True)) for new in written]
    return [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=True)]
