"""Says how many tokens a backbone can read, and which."""

import sys
from typing import Any

import transformers
from torch import nn

from fftmoe.backbones import trust
from fftmoe.backbones.find import resolve_model
from fftmoe.backbones.load import explained_errors
from fftmoe.errors import InputError

AFTER_PADDING = ("roberta", "camembert", "mpnet", "data2vec-text", "longformer", "ibert")
"""Parts of the names of model types whose first position is the one after the padding token's."""


def most_tokens_of(model: str) -> int:
    """Return the most tokens of one text that a model has positions for, by its configuration alone.

    It is no more than what `readable_tokens` says of the loaded model, and very large if no limit is named.

    Raises:
        InputError: the model or its configuration cannot be found or read.
    """
    source = resolve_model(model)
    with explained_errors(model, "configuration"):
        trust.check_settings(source, trust.MODEL_CONFIG)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
    limits = [getattr(config, "max_position_embeddings", None)]
    rotary = getattr(config, "rope_parameters", None) or {}
    if rotary.get("rope_type") == "longrope":
        limits.append(rotary["original_max_position_embeddings"])
    unused = (config.pad_token_id or 0) + 1 if any(name in config.model_type for name in AFTER_PADDING) else 0
    return min((limit - unused for limit in limits if isinstance(limit, int)), default=sys.maxsize)


def readable_tokens(model: Any) -> int | None:
    """Return the most tokens of one text that the model has positions for; None if its configuration names no limit.

    RoBERTa and its relatives count positions from the one after the padding token's, so the first `padding_idx + 1`
    rows of their table of positions are never used. Rotary positions of the kind "longrope" change for
    all texts of a batch once the longest is above the original length, so longer texts would change the answers for
    shorter ones.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings"
    ]
    limits = [len(table.weight) - (0 if table.padding_idx is None else table.padding_idx + 1) for table in tables]
    rotary = getattr(model.config, "rope_parameters", None) or {}
    if rotary.get("rope_type") == "longrope":
        limits.append(rotary["original_max_position_embeddings"])
    return min([positions, *limits])


def check_vocabulary(model: Any, largest: int, name: str) -> None:
    """Refuse tokens that the model does not have: its tokenizer is another model's, or has grown since.

    Args:
        model: perhaps with an adapter. largest: the largest token id; -1 for none. name: of the model, for the message.

    Raises:
        InputError: the token is beyond the model's vocabulary.
    """
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    if isinstance(size, int) and largest >= size:
        raise InputError(
            f"the tokenizer of {name!r} gives token {largest}, but the vocabulary of the model ends with {size - 1}; "
            "name a model together with its own tokenizer"
        )
