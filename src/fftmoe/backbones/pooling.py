"""A classifier on mean-pooled features, for encoders."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolClassifier(nn.Module):
    """A linear classifier on the mean of the backbone's last hidden states over the real tokens.

    Args:
        backbone: a transformers model whose output has `last_hidden_state`.
        num_labels: C.
    """

    # PEFT reads this attribute; without it PEFT would make the frozen embeddings require gradients.
    is_gradient_checkpointing = False
    # Trainer reads these: the loss is a mean over the batch that it is given.
    accepts_loss_kwargs = False
    loss_type = "ForSequenceClassification"

    def __init__(self, backbone: nn.Module, num_labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(self.config.hidden_size, num_labels)

    @property
    def config(self) -> Any:
        """The backbone's transformers configuration."""
        return self.backbone.config

    def features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The pooled [B, D] features that the classifier reads, for token ids and a 0/1 mask of [B, S]."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_BSD = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        if attention_mask is None:
            return hidden_BSD.mean(1)
        mask_BS1 = attention_mask[:, :, None].to(hidden_BSD.dtype)
        return (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1).clamp_min(1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: object,
    ) -> Any:
        """The logits [B, C]; with labels, an output of transformers with `loss` and `logits`.

        The loss is that of transformers for the labels: cross-entropy of classes, binary cross-entropy of several
        labels, squared error of numbers, as a mean over the batch. Further arguments are ignored.
        """
        logits_BC = self.classifier(self.features(input_ids, attention_mask, token_type_ids))
        if labels is None:
            return logits_BC
        config = copy.copy(self.config)  # the function of transformers writes the kind of problem into it
        return SequenceClassifierOutput(loss=ForSequenceClassificationLoss(labels, logits_BC, config), logits=logits_BC)
