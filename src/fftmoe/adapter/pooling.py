"""Defines a classifier on mean-pooled features, for encoders."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolClassifier(nn.Module):
    """Classifies by a linear layer on the mean of the backbone's last hidden states over the real tokens.

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
        self.name_or_path = getattr(backbone, "name_or_path", None)  # PEFT writes it into an adapter's folder

    @property
    def config(self) -> Any:
        """Return the backbone's transformers configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        """Return the device of the backbone, which `transformers.pipeline` asks for."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the backbone's weights, which `transformers.pipeline` asks for."""
        return next(self.backbone.parameters()).dtype

    def can_generate(self) -> bool:
        """Return False, because a classifier continues no text."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Return the backbone's embeddings, as a model of transformers gives them."""
        return cast(Any, self.backbone).get_input_embeddings()

    def features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the pooled [B, D] features that the classifier reads, for token ids and a 0/1 mask of [B, S]."""
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
    ) -> SequenceClassifierOutput:
        """Return an output of transformers with `logits` [B, C], and with `loss` where labels are given.

        The loss is that of transformers for `config.problem_type`: cross-entropy of classes, binary cross-entropy of
        several labels, squared error of numbers, as a mean over the batch. Further arguments are ignored.
        """
        logits_BC = self.classifier(self.features(input_ids, attention_mask, token_type_ids))
        if labels is None:
            return SequenceClassifierOutput(logits=logits_BC)
        config = copy.copy(self.config)  # where it names no kind of problem, transformers writes the likely one into it
        return SequenceClassifierOutput(loss=ForSequenceClassificationLoss(labels, logits_BC, config), logits=logits_BC)


def mean_pooled(backbone: nn.Module, num_labels: int) -> MeanPoolClassifier:
    """Return a classifier on mean features, in the mode of its backbone, without the pooler that nothing reads."""
    # A part that is never used should not count as a part of the model.
    if getattr(backbone, "pooler", None) is not None:
        cast(Any, backbone).pooler = None
    with torch.random.fork_rng(devices=[]):
        return MeanPoolClassifier(backbone, num_labels).train(backbone.training)
