"""Opens a GGUF file as a language model of transformers."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fftmoe.backbones.quiet import quiet_transformers


def open_gguf(path: Path) -> tuple[Any, Any]:
    """Return the language model and the tokenizer of a GGUF file, in float32 and in evaluation mode."""
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    # The bar of this conversion asks nobody, so it is kept from the terminal by itself.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(**place, trust_remote_code=False, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
