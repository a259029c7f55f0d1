"""Defines a linear head on random Fourier features of the backbone's features (Rahimi and Recht, 2007)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fftmoe.rng import generator

# The kernel's width, in units of the features' length. Features of length 1 are at most 2 apart.
KERNEL_WIDTH = 2.0


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x`, converted to float32 if its numbers have fewer bits: for sums and losses."""
    return x.float() if x.dtype.itemsize < torch.float32.itemsize else x


class FourierHead(nn.Linear):
    """Computes logits = W phi(z) + b, phi(z) = sqrt(2/F) cos(D z/|z| / KERNEL_WIDTH + phase): for large F a Gaussian
    kernel.

    The directions D and the phases follow from the seed, so only W and b are sent. Features are normalised to length 1,
    so the width of the kernel needs no statistics and stays right while adapters change the features.

    Args:
        dim: the length of z.
        num_features: F.
        num_labels: C.
        seed: of the directions and the phases.
    """

    directions: Tensor
    phases: Tensor

    def __init__(self, dim: int, num_features: int, num_labels: int, seed: int) -> None:
        super().__init__(num_features, num_labels)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        source = generator(seed, "fourier")
        self.register_buffer("directions", torch.randn(dim, num_features, generator=source) / KERNEL_WIDTH)
        self.register_buffer("phases", torch.rand(num_features, generator=source) * 2 * math.pi)

    def lift(self, z: Tensor) -> Tensor:
        """Return phi(z) [..., F], in full precision, because the cosine of a rounded angle would be another feature."""
        with torch.autocast(z.device.type, enabled=False):
            angles = F.normalize(at_least_float32(z), dim=-1) @ self.directions + self.phases
            return math.sqrt(2 / self.in_features) * torch.cos(angles)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits [..., C] for z [..., dim]."""
        return super().forward(self.lift(input))
