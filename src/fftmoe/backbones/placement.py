"""Decides on which device a model computes, and in which number format."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fftmoe.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def find_device(name: str) -> torch.device:
    """Return the device called `cpu` or `cuda`; for `auto` the GPU if there is one.

    Raises:
        InputError: `cuda` is named, but torch finds no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("engine.device=cuda, but torch finds no CUDA GPU on this machine; set it to auto or cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of this name; for `auto` bfloat16 if the device multiplies such numbers faster than float32."""
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(feature) for feature in ("avx512_bf16", "amx_bf16")) else torch.float32


def place(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move the model to this device and let it multiply in `dtype` from now on; its weights keep their dtype.

    Trained weights and sums stay float32: torch's autocast decides which operations are safe in fewer bits.
    """
    model.to(device)
    model.compute_dtype = dtype
    if device.type == "cpu" and dtype == torch.bfloat16:
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa":
                module.set_attn_implementation(FLOAT32_ATTENTION)
    return model


def _float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Compute the products within attention in float32, because their backward pass on a CPU is slower in bfloat16."""
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **settings
        )
    return output.to(query.dtype), None


FLOAT32_ATTENTION = "sdpa_float32"
AttentionInterface.register(FLOAT32_ATTENTION, _float32_attention)
AttentionMaskInterface.register(FLOAT32_ATTENTION, sdpa_mask)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype that `place` was given for this model; float32 for other models."""
    return cast(torch.dtype, getattr(model, "compute_dtype", torch.float32))


def computing(model: nn.Module) -> AbstractContextManager[Any]:
    """Let the model multiply, within the context, in its `compute_dtype`."""
    dtype = compute_dtype(model)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device_of(model).type, dtype)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


def on_device(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch on the device of the model."""
    device = device_of(model)
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
