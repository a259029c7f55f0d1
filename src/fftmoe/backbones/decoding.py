"""Chooses the next token of a text: the most likely one, or one that is drawn.

A draw is the largest of the logits with Gumbel noise, which is exactly a draw from their softmax (Gumbel, 1954). So
each prompt can have a random stream of its own, and its answer does not depend on which prompts share its batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from fftmoe.errors import InputError
from fftmoe.rng import generator

COLDEST, HOTTEST = 0.01, 100.0  # temperatures of a draw: beyond, logits overflow or differ no more


@dataclass(frozen=True)
class Decoding:
    """Says how a prompt is continued.

    Attributes:
        max_new_tokens: the most tokens of a continuation that no end token has ended.
        temperature: divides the logits before a draw; 0 for the most likely token each time.
        top_p: a draw is among the most likely tokens whose probabilities together are at least so much.
        seed: of the draws.

    Raises:
        InputError: a value is out of its range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens} is below 1; set it to at least 1")
        if self.temperature != 0 and not COLDEST <= self.temperature <= HOTTEST:
            raise InputError(
                f"temperature={self.temperature:g} cannot be used; set it to 0 for the most likely token each time, or "
                f"from {COLDEST:g} to {HOTTEST:g} to draw tokens"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p:g} is no share of the probability; set it above 0 and at most to 1")
        if self.temperature == 0 and self.top_p < 1:
            raise InputError(f"top_p={self.top_p:g} has no effect at temperature 0; set a temperature, such as 0.7")


class TokenDraw(LogitsProcessor):
    """Adds to logits the noise whose largest sum is a draw.

    Args:
        decoding: with a temperature above 0.
        rows: the number of each prompt of the batch, which names its random stream.
    """

    def __init__(self, decoding: Decoding, rows: Sequence[int]) -> None:
        self._streams = [generator(decoding.seed, "generate", row) for row in rows]
        self._warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(float(decoding.temperature))]
        if decoding.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(decoding.top_p)))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the logits [B, V] with noise; a token that cannot be drawn has minus infinity."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        return scores + torch.stack([_gumbel(scores.shape[1], stream) for stream in self._streams]).to(scores.device)


def _gumbel(size: int, stream: torch.Generator) -> Tensor:
    """Draw independently from the standard Gumbel distribution, float32 [size]."""
    exponential = torch.empty(size).exponential_(generator=stream)
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()
