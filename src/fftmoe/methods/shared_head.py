"""Reads and loads the classification head, which every method sends as a whole under names `head.*`."""

from typing import Any

import torch
from torch import nn

from fftmoe.backbones import head_parameters
from fftmoe.records import Tensors, names


def head_tensors(model: Any) -> Tensors:
    """Return a copy of the model's head, with tensors named `head.{name}`."""
    return {names.head_tensor(name): p.detach().cpu().clone() for name, p in head_parameters(model).items()}


def load_head(model: Any, tensors: Tensors, train: bool = True) -> dict[str, nn.Parameter]:
    """Copy `head.*` into the model and return the head's parameters; return none if `train` is False."""
    parameters = head_parameters(model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[names.head_tensor(name)])
    return {names.head_tensor(name): p for name, p in parameters.items()} if train else {}
