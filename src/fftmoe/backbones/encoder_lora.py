"""Saves the LoRA of a classifier on pooled features as one of its bare encoder,
which PEFT opens without this package.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from fftmoe.adapter.bound import ADAPTER_WEIGHTS
from fftmoe.adapter.pooling import MeanPoolClassifier
from fftmoe.backbones.quiet import quiet_peft

HEAD_FILE = "classifier.safetensors"
INNER = "backbone."  # where a classifier on pooled features keeps its encoder


class PooledClassifier(nn.Module):
    """Computes the logits of an encoder with a LoRA and of the numbers of a head, as the model card computes them."""

    def __init__(self, encoder: nn.Module, head: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.encoder, self.head = encoder, dict(head)

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Return the logits [B, C] for token ids and a mask of [B, S]."""
        states = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        mask, head = attention_mask[..., None], self.head
        features = (states * mask).sum(1) / mask.sum(1)
        if "directions" in head:
            features = F.normalize(features, dim=-1) @ head["directions"] + head["phases"]
            features = (2 / len(head["phases"])) ** 0.5 * features.cos()
        return F.linear(features, head["weight"], head["bias"])


def is_pooled(model: Any) -> bool:
    """Return whether an adapted model is a classifier on pooled features."""
    return isinstance(model.get_base_model(), MeanPoolClassifier)


def save_encoder_lora(model: Any, folder: Path) -> None:
    """Write the LoRA of an adapted classifier on pooled features, and the head's tensors beside it."""
    folder.mkdir(exist_ok=True)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)  # "auto" asks where the base model lies
    tensors = {name.removeprefix("base_model.model."): t for name, t in own.items()}
    encoder = {f"base_model.model.{n.removeprefix(INNER)}": t for n, t in tensors.items() if n.startswith(INNER)}
    head = {n.removeprefix("classifier."): t for n, t in tensors.items() if n.startswith("classifier.")}
    for name, part in ((ADAPTER_WEIGHTS, encoder), (HEAD_FILE, head)):
        safetensors.torch.save_file({n: t.contiguous() for n, t in part.items()}, folder / name, {"format": "pt"})
        (folder / name).chmod(0o666 & ~_umask_of(folder))
    config = _of_the_encoder(model.peft_config["default"], getattr(model.get_base_model(), "name_or_path", None))
    config.save_pretrained(str(folder))


def _umask_of(folder: Path) -> int:
    """Return the permissions that this process takes from new folders."""
    return 0o777 & ~folder.stat().st_mode


def _of_the_encoder(config: LoraConfig, base: str | None) -> LoraConfig:
    """Return the configuration of the same LoRA on the encoder alone."""
    config = copy.deepcopy(config)
    escaped = INNER.replace(".", r"\.")
    names = config.target_modules
    assert names is not None
    assert not isinstance(names, str)
    config.target_modules = sorted(name.removeprefix(INNER) for name in names)
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = {name.removeprefix(escaped): value for name, value in getattr(config, field).items()}
        setattr(config, field, pattern)
    config.modules_to_save, config.auto_mapping, config.inference_mode = None, None, True
    config.task_type, config.base_model_name_or_path = "FEATURE_EXTRACTION", base  # pyright: ignore
    return config


def open_encoder_lora(backbone: MeanPoolClassifier, folder: Path) -> PooledClassifier:
    """Return the model of a folder that `save_encoder_lora` has written, made with nothing but PEFT and torch."""
    with quiet_peft():
        encoder = PeftModel.from_pretrained(backbone.backbone, str(folder)).eval()
    return PooledClassifier(encoder, safetensors.torch.load_file(folder / HEAD_FILE))
