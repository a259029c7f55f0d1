"""Refuses outputs of a model that are not finite, because the largest of them would look like an answer."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fftmoe.errors import RunError


def check_finite_outputs(sound_B: Tensor) -> None:
    """Refuse the outputs of a batch if any of its examples has no answer.

    Args:
        sound_B: for each example of a batch, whether its outputs are finite, bool [B].

    Raises:
        RunError: an example's outputs are not finite.
    """
    if not sound_B.all():
        raise RunError(
            f"the model's outputs are not finite numbers for {int((~sound_B).sum())} of {len(sound_B)} examples of a "
            "batch, so it has no answer; after training it has diverged: start a new run with a lower "
            "federation.learning_rate or head.learning_rate; before training the backbone itself computes them: set "
            "engine.precision to float32, or use another backbone"
        )


class OnlyFinite(LogitsProcessor):
    """Checks the logits of every token that a language model generates; it changes none."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` [B, V] as they are.

        Raises:
            RunError: one of them is not finite.
        """
        check_finite_outputs(scores.isfinite().all(1))
        return scores
