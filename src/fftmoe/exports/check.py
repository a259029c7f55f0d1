"""Whether what was exported computes what the run's model computes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fftmoe.backbones import load_image_processor, logits
from fftmoe.errors import RunError
from fftmoe.rng import generator
from fftmoe.setup.load import reads_images
from fftmoe.trained.load import Trained

Batch = dict[str, Tensor]

SAME = 1e-6  # between two of the same operations
SHAPES = ((1, 2), (3, 7), (5, 13))  # examples and tokens; other sizes than those a graph is traced with


def probes(trained: Trained) -> list[Batch]:
    """Batches of several sizes in the form of the run's data, drawn from a fixed seed: a check needs no data set."""
    source = generator(0, "probe")
    if reads_images(trained.recipe):
        height, width = load_image_processor(trained.recipe.backbone.model).size
        return [{"pixel_values": torch.randn(rows, 3, height, width, generator=source)} for rows, _ in SHAPES]
    vocabulary = trained.model.get_base_model().config.vocab_size
    return [_tokens(rows, min(length, trained.recipe.data.max_length), vocabulary, source) for rows, length in SHAPES]


def _tokens(rows: int, length: int, vocabulary: int, source: torch.Generator) -> Batch:
    """Random token ids, padded on the right to unlike lengths as texts are."""
    ids = torch.randint(0, vocabulary, (rows, length), generator=source)
    lengths = length - torch.arange(rows) % length
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()}


def answers(model: Any, batches: Sequence[Batch]) -> list[Tensor]:
    """An adapted model's logits for each batch."""
    with torch.inference_mode():
        return [logits(model, batch) for batch in batches]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two models' logits; where some are above 1, in units of the batch's largest one."""
    pairs = zip(found, expected, strict=True)
    return max(float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max())) for ours, theirs in pairs)


def require(found: float, tolerance: float, what: str) -> dict[str, float]:
    """What `export.json` says of the comparison.

    Raises:
        RunError: the difference is above the tolerance, or is no number.
    """
    if not found <= tolerance:
        raise RunError(
            f"the exported {what} gives other logits than the run's model: they differ by {found:.3g}, and "
            f"{tolerance:g} is allowed; nothing was written"
        )
    return {"tolerance": tolerance, "max_difference": found}
