"""Compares an exported model with the model of its run, on random inputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fftmoe import adapter
from fftmoe.backbones import load_image_processor, logits
from fftmoe.errors import InputError, RunError
from fftmoe.methods.registry import METHODS
from fftmoe.rng import generator
from fftmoe.store import read_summary
from fftmoe.trained.run import FinishedRun, TrainedModel

Batch = dict[str, Tensor]

SAME = 1e-6  # allowed between two models that perform the same operations on the same shapes
REORDERED = 1e-4  # allowed between two that add in another order: a few thousand additions in float32
SHAPES = ((1, 2), (3, 7), (5, 13))  # examples and tokens; a graph is traced with the last shape only


def _trains(run: FinishedRun) -> str:
    """Return what the run's method trains; of a plug-in, what the summary says, which earlier versions left out."""
    if run.method in METHODS:
        return METHODS[run.method].capabilities.trains
    return read_summary(run.folder).get("capabilities", {}).get("trains", "experts")


def check_has_experts(trained: TrainedModel, purpose: str) -> None:
    """Check that a run trained a mixture of experts.

    Args:
        purpose: what the experts are needed for, such as "to choose from".

    Raises:
        InputError: the method of the run trains another kind of adapter, or the head only.
    """
    if not adapter.blocks(trained.model) or _trains(trained.run) != "experts":
        raise InputError(
            f"a run of method {trained.run.method} has no experts {purpose}; export its adapter unchanged: --to peft"
        )


def probes(trained: TrainedModel) -> list[Batch]:
    """Return batches of several sizes in the format of the run's data, drawn from a fixed seed,
    so no data set is needed.
    """
    run, source = trained.run, generator(0, "probe")
    if run.reads_images:
        height, width = load_image_processor(run.backbone.model).size
        return [{"pixel_values": torch.randn(rows, 3, height, width, generator=source)} for rows, _ in SHAPES]
    vocabulary = trained.model.get_base_model().config.vocab_size
    return [_tokens(rows, min(length, run.inputs.max_length), vocabulary, source) for rows, length in SHAPES]


def _tokens(rows: int, length: int, vocabulary: int, source: torch.Generator) -> Batch:
    """Return random token ids of different lengths, padded on the right as texts are."""
    ids = torch.randint(0, vocabulary, (rows, length), generator=source)
    lengths = length - torch.arange(rows) % length
    return {"input_ids": ids, "attention_mask": (torch.arange(length) < lengths[:, None]).long()}


def answers(model: Any, batches: Sequence[Batch]) -> list[Tensor]:
    """Return the logits of an adapted model for each batch."""
    with torch.inference_mode():
        return [logits(model, batch) for batch in batches]


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest difference between the logits of two models.

    A batch whose largest expected logit is above 1 counts its differences relative to that logit.
    """
    pairs = zip(found, expected, strict=True)
    return max(float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max())) for ours, theirs in pairs)


def require(found: float, tolerance: float, what: str) -> dict[str, float]:
    """Return the result of the comparison, as `export.json` records it.

    Raises:
        RunError: the difference is above the tolerance, or is not a number.
    """
    if not found <= tolerance:
        raise RunError(
            f"the exported {what} gives other logits than the run's model: they differ by {found:.3g}, and at most "
            f"{tolerance:g} is allowed; nothing was written"
        )
    return {"tolerance": tolerance, "max_difference": found}
