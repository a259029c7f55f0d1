"""Quantises frozen weights to 8 or 4 bits, by bitsandbytes; the adapter's own weights are not quantised."""

import importlib.metadata
import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from fftmoe.errors import InputError, did_you_mean

QUANTIZATIONS = ("none", "8bit", "4bit")
OLDEST = (0, 49)  # the first version whose CPU implementation has a forward and a backward pass


def check_quantization(quantization: str) -> None:
    """Check that weights can be quantised on this machine, before anything is loaded.

    Raises:
        InputError: the name is unknown, or bitsandbytes is not installed or too old.
    """
    if quantization not in QUANTIZATIONS:
        raise InputError(f"unknown quantization {quantization!r}{did_you_mean(quantization, QUANTIZATIONS)}")
    if quantization == "none":
        return
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"backbone.quantization={quantization} needs the package bitsandbytes, which is not installed: "
            "pip install 'fftmoe[quantized]', or set it to none (weights quantised by torchao, quanto, hqq, GPTQ or "
            "AWQ are not read)"
        ) from None
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise InputError(
            f"backbone.quantization={quantization} needs bitsandbytes {'.'.join(map(str, OLDEST))} or later, but "
            f"{version} is installed: pip install -U bitsandbytes, or set it to none"
        )


def quantization_options(quantization: str, device: torch.device, kept: Sequence[str]) -> dict[str, Any]:
    """Return arguments for `from_pretrained` of transformers, which then quantises all modules except `kept` as it
    loads them.

    4 bits are NormalFloat4 (QLoRA, arXiv 2305.14314), multiplied in the dtype of the input; 8 bits are LLM.int8 (arXiv
    2208.07339).
    """
    if quantization == "none":
        return {}
    config = transformers.BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=list(kept),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def settle_quantized(model: nn.Module) -> None:
    """Make sure that a quantised model stays the same function, whatever it is used for.

    On a CPU with bfloat16, bitsandbytes packs 4-bit weights in another way at the first call without gradients. From
    then on they multiply in fewer bits and, worse, silently give no gradient for their inputs.
    """
    if getattr(model, "is_quantized", False):
        # Otherwise every product in 8 bits would log that its input is rounded to float16 first.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def check_drawn(model: nn.Module, names: set[str]) -> None:
    """Check that no weight which the checkpoint lacks has been quantised, because it must still be drawn.

    Raises:
        InputError: one was quantised, from values without a meaning.
    """
    lost = [name for name, p in model.named_parameters() if name in names and not p.is_floating_point()]
    if lost:
        raise InputError(
            f"the checkpoint has no {', '.join(lost[:3])}, so there is nothing to quantise; set backbone.quantization "
            "to none, or use a complete checkpoint"
        )
