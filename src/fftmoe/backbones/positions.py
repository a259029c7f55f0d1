"""How many tokens a backbone can read."""

from typing import Any

from torch import nn


def readable_tokens(model: Any) -> int | None:
    """The most tokens of one text that the model has positions for; None if its configuration names no limit.

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
