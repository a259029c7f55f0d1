"""A classifier on mean-pooled features, for encoders."""

from typing import Any

from torch import Tensor, nn


class MeanPoolClassifier(nn.Module):
    """A linear classifier on the mean of the backbone's last hidden states over the real tokens.

    Args:
        backbone: a transformers model whose output has `last_hidden_state`.
        num_labels: C.
    """

    # PEFT reads this attribute; without it PEFT would make the frozen embeddings require gradients.
    is_gradient_checkpointing = False

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
        **_: object,
    ) -> Tensor:
        """The logits [B, C]; further arguments, such as labels, are ignored."""
        return self.classifier(self.features(input_ids, attention_mask, token_type_ids))
