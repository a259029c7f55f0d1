"""Putting other weights, of any number of rows or clients, in the place of a module's."""

from torch import Tensor, nn


def replaced(old: nn.Parameter, new: Tensor) -> nn.Parameter:
    """A parameter of these values, where the old one was, of its dtype and as trainable as it.

    A copy: training the client's weights must not reach into the tensors they were loaded from.
    """
    value = new.detach().to(device=old.device, dtype=old.dtype, copy=True)
    return nn.Parameter(value, requires_grad=old.requires_grad)
