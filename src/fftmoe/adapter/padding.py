"""Keeps what fills the shorter rows of a batch out of a model's answers, whichever token it is.

The attention mask hides filled places from the other places. Some heads do not look at the mask: a classifier on a
decoder reads the last token that is not `config.pad_token_id`, and RoBERTa counts positions with it. A tokenizer can
pad with another token, and then the answer would depend on the longest text in the batch.
"""

import inspect
from typing import Any

from torch import Tensor, nn


def settle_padding_token(config: Any) -> None:
    """Give the configuration of a text model a padding token that is in its vocabulary.

    It is the end-of-text token, or else token 0, where the configuration names none, or one outside (Llama's first
    configurations say -1).
    """
    size = getattr(config, "vocab_size", None)
    ends = getattr(config, "eos_token_id", None)
    candidates = [getattr(config, "pad_token_id", None), *(ends if isinstance(ends, list) else [ends])]
    if isinstance(size, int):
        config.pad_token_id = next((i for i in candidates if isinstance(i, int) and 0 <= i < size), 0)


def hide_padding(model: nn.Module) -> None:
    """Let the model from now on read its own padding token in every place that the attention mask leaves out."""
    if _with_own_padding not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_with_own_padding, with_kwargs=True)


def _with_own_padding(
    model: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    given = inspect.signature(model.forward).bind_partial(*arguments).arguments | named
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if not isinstance(ids, Tensor) or not isinstance(mask, Tensor) or mask.shape != ids.shape:
        return None
    filled = ids.masked_fill(mask == 0, model.config.pad_token_id)
    return (arguments, {**named, "input_ids": filled}) if "input_ids" in named else ((filled, *arguments[1:]), named)
