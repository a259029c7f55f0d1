"""Computes short digests that identify a global model, and the models on which an update was trained."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.bfloat16, torch.float16)


def digest(tensors: Mapping[str, Tensor], more: str = "", widened: bool = False) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of these tensors, in any order, and of an additional text.

    Args:
        widened: read numbers of 16 bits as the float32 numbers that they are equal to.
    """
    found = hashlib.sha256(more.encode())
    for name, tensor in sorted(tensors.items()):
        t = tensor.float() if widened and tensor.dtype in HALVES else tensor
        found.update(f"\n{name} {t.dtype} {[*t.shape]}\n".encode())
        whole: Any = t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()  # numpy has no bfloat16
        found.update(whole)
    return found.hexdigest()[:16]


def made_on(backbone: str, base: str) -> str:
    """Return 16 hexadecimal digits that identify the backbone and the global model on which an update was trained.

    Args:
        backbone: fingerprint of the client's own backbone.
        base: `ClientPlan.base`, the digest of the global model.
    """
    return hashlib.sha256(f"{backbone} {base}".encode()).hexdigest()[:16]
