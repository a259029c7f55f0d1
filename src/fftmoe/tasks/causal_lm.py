"""The next token of a text, or of the completion of a prompt.

Shape letters: B batch, S sequence, V vocabulary.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.data import IGNORED
from fftmoe.tasks.base import ratio

LARGEST_EXPONENT = 709.0  # e to more is infinite, which JSON cannot say


class NextToken:
    """Cross-entropy: L = mean over learned tokens t of -log softmax(z_{t-1})[y_t], in float32.

    The mean is over the tokens of the batch, as in transformers' own loss: a long completion weighs more than a short.
    """

    def loss(self, logits_BSV: Tensor, labels_BS: Tensor, /) -> Tensor:
        """The mean over the tokens whose label is not -100; the first of a sequence follows nothing."""
        return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten(), ignore_index=IGNORED)


class CausalLm:
    """Perplexity, e to the mean loss in nats per token; the loss itself beside it."""

    metric = "perplexity"
    higher_is_better = False
    bounds = (1.0, 1e15)  # a model that is worse than this has failed
    by_token = True

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, 2]: the sum of the tokens' losses in nats, and how many tokens are learned."""
        labels_BS = batch["labels"][:, 1:]
        nats_BS = F.cross_entropy(logits[:, :-1].mT, labels_BS, ignore_index=IGNORED, reduction="none")
        return torch.stack([nats_BS.double().sum(1), (labels_BS != IGNORED).double().sum(1)], 1)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Of sums [..., 2]."""
        loss = ratio(sums[..., 0], sums[..., 1])
        return {"perplexity": np.exp(np.minimum(loss, LARGEST_EXPONENT)), "loss": loss}
