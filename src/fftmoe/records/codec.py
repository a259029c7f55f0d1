"""Tensors in fewer bytes for the wire, as safetensors can hold them (docs/math.md, Upload).

`bfloat16` rounds every number. `int8` keeps q = round(x / s) with one float32 scale s = max |x| / 127 for each slice
along the longest axis, beside the tensor as `name:scale`: about a quarter of float32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean

KINDS = ("float32", "bfloat16", "int8")
LEVELS = 127  # the same on both sides of zero
SCALE = ":scale"


def encode(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """These float tensors in the numbers of `kind`; `float32` leaves them as they are."""
    if kind not in KINDS:
        raise InputError(f"unknown upload {kind!r}{did_you_mean(kind, KINDS)}")
    if kind == "float32":
        return dict(tensors)
    if kind == "bfloat16":
        return {name: tensor.bfloat16() for name, tensor in tensors.items()}
    return {key: part for name, tensor in tensors.items() for key, part in _encode_int8(name, tensor).items()}


def _encode_int8(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if tensor.numel() == 0:
        return {name: tensor.to(torch.int8), name + SCALE: torch.zeros(())}
    longest = max(range(tensor.dim()), key=lambda axis: tensor.shape[axis], default=())
    scale = tensor.float().abs().amax(longest, keepdim=True) / LEVELS
    # Where all is zero any scale will do; where the scale is below the smallest float, everything rounds to zero.
    steps = tensor.float() / scale.where(scale > 0, 1.0)
    return {name: steps.round().clamp(-LEVELS, LEVELS).to(torch.int8), name + SCALE: scale}


def decode(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `encode` made of them, float32; other tensors as they are."""
    decoded = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        if tensor.dtype == torch.int8:
            decoded[name] = tensor.float() * tensors[name + SCALE]
        else:
            decoded[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return decoded


def bytes_per_number(kind: str, longest: int) -> float:
    """What a number takes on the wire, in slices of this length."""
    return {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0 + 4.0 / longest}[kind]
