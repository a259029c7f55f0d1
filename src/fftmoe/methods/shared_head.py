"""The classification head, which every method sends whole under names `head.*`."""

from typing import Any

import torch
from torch import nn

from fftmoe.backbones import head_parameters
from fftmoe.records import Tensors, names


def head_tensors(model: Any) -> Tensors:
    """The model's head as it is now, `head.{name}`."""
    return {names.head_tensor(name): p.detach().cpu().clone() for name, p in head_parameters(model).items()}


def load_head(model: Any, tensors: Tensors, train: bool = True) -> dict[str, nn.Parameter]:
    """Copy `head.*` into the model; returns the parameters to train, none where the head is fixed."""
    parameters = head_parameters(model)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[names.head_tensor(name)])
    return {names.head_tensor(name): p for name, p in parameters.items()} if train else {}
