"""Refuses outputs of a model that are not finite, because the largest of them would look like an answer."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fftmoe.errors import RunError
from fftmoe.shown import count_of


def check_finite_outputs(sound_B: Tensor) -> None:
    """Refuse the outputs of a batch if any of its examples has no answer.

    Args:
        sound_B: for each example of a batch, whether its outputs are finite, bool [B].

    Raises:
        RunError: an example's outputs are not finite.
    """
    if not sound_B.all():
        raise RunError(
            f"the model's outputs are not finite numbers for {int((~sound_B).sum())} of "
            f"{count_of(len(sound_B), 'example')} of a batch, so it has no answer; after training it has diverged: "
            "start a new run with a lower federation.learning_rate or head.learning_rate; before training the "
            "backbone itself computes them: set engine.precision to float32, or use another backbone"
        )


NO_ANSWER = "the model's outputs are not finite numbers, so it has no answer"
"""The reason that an input has in the place of an answer, where other inputs have one."""


class FiniteRows(LogitsProcessor):
    """Notes which prompts of a batch have only finite logits, at every token that is generated; it changes none.

    Attributes:
        sound_B: whether all logits of a prompt were finite so far, bool [B].
    """

    def __init__(self, num_prompts: int, device: torch.device) -> None:
        self.sound_B = torch.ones(num_prompts, dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` [B, V] as they are."""
        self.sound_B &= scores.isfinite().all(1)
        return scores
