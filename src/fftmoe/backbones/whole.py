"""Whole models of transformers, without an adapter: which models are some, and how a GGUF file is opened as one."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from fftmoe.backbones.quiet import quiet_transformers


def is_whole(model: object) -> bool:
    """Whether a model is one of transformers as it stands, with its head, if it has one."""
    return isinstance(model, PreTrainedModel)


def open_gguf(path: Path) -> tuple[Any, Any]:
    """The language model and the tokenizer of a GGUF file, in float32 and in evaluation mode."""
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # The bar of this conversion asks nobody, so it is kept from the terminal by itself.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(**place, trust_remote_code=False, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
