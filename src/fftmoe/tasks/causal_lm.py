"""Judges causal language models, which predict the next token of a text, or of the completion of a prompt.

Shape letters: B batch, S sequence. The losses of tokens are made by `fftmoe.backbones.token_losses`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.tasks.base import NO_BOUND, ratio
from fftmoe.tasks.share import no_share

LARGEST_EXPONENT = 709.0  # e to a larger power is infinite, which JSON cannot represent


class NextToken:
    """Computes the cross-entropy: L = mean over learned tokens t of -log softmax(z_{t-1})[y_t], in float32.

    The mean is over the tokens of the batch, as in the loss of transformers: a long completion counts more than a short
    one.
    """

    next_token = True

    def loss(self, losses_BS: Tensor, labels_BS: Tensor, /) -> Tensor:
        """Return the mean over the tokens whose label is not -100, 0 if none is;
        a sequence's first token has no loss.
        """
        return losses_BS.sum() / (labels_BS[:, 1:] != IGNORED).sum().clamp_min(1)

    def by_example(self, losses_BS: Tensor, labels_BS: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return the loss of each text, summed over its tokens, and the number of these, [B] each."""
        return losses_BS.sum(1), (labels_BS[:, 1:] != IGNORED).sum(1)

    def items(self, labels_BS: Tensor, /) -> int:
        """Return the number of tokens that have a loss."""
        return int((labels_BS[:, 1:] != IGNORED).sum())


class CausalLm:
    """Measures perplexity, e to the power of the mean loss in nats per token; and the loss itself."""

    metric = "perplexity"
    higher_is_better = False
    bounds = (1.0, NO_BOUND)
    share = no_share
    next_token = True
    by_token = True
    exclusive = True
    label_parts = 0

    def statistics(self, losses_BS: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 2]: the sum of the tokens' losses in nats, and the number of these tokens."""
        learned_BS = batch["labels"][:, 1:] != IGNORED
        return torch.stack([losses_BS.double().sum(1), learned_BS.double().sum(1)], 1)

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Return None: a token of a vocabulary is no label."""

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits, [2] each; a larger mean loss than `LARGEST_EXPONENT` has the metric of that loss."""
        tokens = float(num_rows * most_tokens)
        return np.zeros(2), np.array([LARGEST_EXPONENT * tokens, tokens])

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics from sums [..., 2]."""
        loss = ratio(sums[..., 0], sums[..., 1])
        return {"perplexity": np.exp(np.minimum(loss, LARGEST_EXPONENT)), "loss": loss}
