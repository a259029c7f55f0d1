"""Causal language models: predict the next token of a text, or of the completion of a prompt.

Shape letters: B batch, S sequence, V vocabulary.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.tasks.base import mean_over_tokens, ratio

LARGEST_EXPONENT = 709.0  # e to a larger power is infinite, which JSON cannot represent


class NextToken:
    """Cross-entropy: L = mean over learned tokens t of -log softmax(z_{t-1})[y_t], in float32.

    The mean is over the tokens of the batch, as in the loss of transformers: a long completion counts more than a short
    one.
    """

    def loss(self, logits_BSV: Tensor, labels_BS: Tensor, /) -> Tensor:
        """The mean over the tokens whose label is not -100, 0 if none is; a sequence's first token has no loss."""
        return mean_over_tokens(logits_BSV[:, :-1], labels_BS[:, 1:])


class CausalLm:
    """Perplexity, e to the power of the mean loss in nats per token; and the loss itself."""

    metric = "perplexity"
    higher_is_better = False
    bounds = (1.0, 1e15)  # a model with a larger value has failed
    by_token = True
    exclusive = True
    label_parts = 0

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, 2]: the sum of the tokens' losses in nats, and the number of these tokens."""
        labels_BS = batch["labels"][:, 1:]
        nats_BS = F.cross_entropy(logits[:, :-1].mT, labels_BS, ignore_index=IGNORED, reduction="none")
        return torch.stack([nats_BS.double().sum(1), (labels_BS != IGNORED).double().sum(1)], 1)

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """None: a token of a vocabulary is no label."""

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """[2] each; a larger mean loss than `LARGEST_EXPONENT` has the metric of that loss."""
        tokens = float(num_rows * most_tokens)
        return np.zeros(2), np.array([LARGEST_EXPONENT * tokens, tokens])

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics from sums [..., 2]."""
        loss = ratio(sums[..., 0], sums[..., 1])
        return {"perplexity": np.exp(np.minimum(loss, LARGEST_EXPONENT)), "loss": loss}
