"""Encodes tensors in fewer bytes for the wire, in number formats that safetensors supports (docs/math.md, Upload).

`bfloat16` rounds every number. `int8` stores q = round(x / s) with one float32 scale s = max |x| / 127 per slice along
the longest axis. The scales form an additional tensor `name:scale`. An `int8` tensor takes about a quarter of the bytes
of float32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fftmoe.errors import InputError, did_you_mean
from fftmoe.records import names

NUMBER_FORMATS = ("float32", "bfloat16", "int8")
LEVELS = 127  # positive levels, and as many negative ones


def encode(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Encode float tensors in the number format `kind`; `float32` leaves them unchanged.

    Raises:
        InputError: `kind` is unknown.
    """
    if kind not in NUMBER_FORMATS:
        raise InputError(f"unknown upload {kind!r}{did_you_mean(kind, NUMBER_FORMATS)}")
    if kind == "float32":
        return dict(tensors)
    if kind == "bfloat16":
        return {name: tensor.bfloat16() for name, tensor in tensors.items()}
    return {key: part for name, tensor in tensors.items() for key, part in _encode_int8(name, tensor).items()}


def _encode_int8(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return one tensor as int8 and its scales."""
    if tensor.numel() == 0:
        return {name: tensor.to(torch.int8), names.scale_of(name): torch.zeros(())}
    longest = max(range(tensor.dim()), key=lambda axis: tensor.shape[axis], default=())
    scale = tensor.float().abs().amax(longest, keepdim=True) / LEVELS
    # A slice of zeros may have any scale. If the scale underflows to zero, the whole slice rounds to zero.
    steps = tensor.float() / scale.where(scale > 0, 1.0)
    return {name: steps.round().clamp(-LEVELS, LEVELS).to(torch.int8), names.scale_of(name): scale}


def decode(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Decode encoded tensors to float32, and leave other tensors unchanged."""
    decoded = {}
    for name, tensor in tensors.items():
        if names.is_scale(name):
            continue
        if tensor.dtype == torch.int8:
            decoded[name] = tensor.float() * tensors[names.scale_of(name)]
        else:
            decoded[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return decoded


def bytes_per_number(kind: str, longest: int) -> float:
    """Return the bytes per number on the wire, for slices of length `longest`."""
    return {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0 + 4.0 / longest}[kind]
