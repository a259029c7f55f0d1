"""Replaces a module's weights by other weights, of any number of rows or clients."""

from torch import Tensor, nn


def replaced(old: nn.Parameter, new: Tensor) -> nn.Parameter:
    """Return a parameter with the new values and the device, the dtype and `requires_grad` of the old one.

    The values are copied: training must not change the tensors that were loaded.
    """
    value = new.detach().to(device=old.device, dtype=old.dtype, copy=True).contiguous()
    return nn.Parameter(value, requires_grad=old.requires_grad)
