"""Puts the temperature of a solved head into a saved model: its last layer takes it over,
so that a softmax is calibrated.
"""

from typing import Any

import torch

from fftmoe.backbones import head_parameters


@torch.no_grad()
def set_temperature(model: Any, temperature: float | None) -> None:
    """Divide the outputs of an adapted model's head by its temperature; None leaves the model as it is.

    W becomes W / T, and b becomes b / T. The largest output stays the largest.
    """
    if temperature is None:
        return
    for parameter in head_parameters(model).values():
        parameter.copy_(parameter.double() / temperature)
