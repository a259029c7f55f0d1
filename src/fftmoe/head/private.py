"""Fits a client's private part of a closed-form head to the client's own items (docs/math.md, Personal answers).

The head W of everyone leaves residuals r = y - W x on a client's items. A ridge regression of these residuals gives a
matrix that the client adds to W for itself:

    D = argmin sum_i |D x_i - r_i|^2 + rho |D|^2 = (sum_i r_i x_iT) (sum_i x_i x_iT + rho)^-1

For a large rho it is nothing, and the client answers as everyone does; for a small one it fits the client's own items
as closely as a head of its own. Nothing is sent, and W stays as it is.

Shape letters: N items (the examples, or their labelled tokens), F features, C outputs, D = F + 1, R directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fftmoe.head.closed_form import with_one
from fftmoe.threads import one_thread

RIDGES = tuple(10.0 ** (e / 2) for e in range(2, -9, -1))
"""The values of rho from which a client chooses, relative to the mean square of |x|, the largest first."""

LEAST_ENERGY = 1e-12  # a direction with a smaller part of the largest energy is rounding


@dataclass(frozen=True)
class PrivateFit:
    """Holds a client's items and their residuals in the directions in which their features differ.

    Attributes:
        directions: the eigenvectors of sum_i x_i x_iT, x = [features, 1], whose eigenvalues are not 0, float64 [D, R].
        energies: the eigenvalues, float64 [R]. coordinates: of the items, float64 [N, R].
        residuals: float64 [N, C].
        unit: the mean of |x|^2.
    """

    directions: Tensor
    energies: Tensor
    coordinates: Tensor
    residuals: Tensor
    unit: float

    @classmethod
    @one_thread()
    def of(cls, features_NF: Tensor, residuals_NC: Tensor) -> "PrivateFit":
        """Return that of at least one item."""
        x_ND = with_one(features_NF)
        few = len(x_ND) <= x_ND.shape[1]
        energies, vectors = torch.linalg.eigh(x_ND @ x_ND.T if few else x_ND.T @ x_ND)
        known = energies > LEAST_ENERGY * energies[-1]
        energies, vectors = energies[known], vectors[:, known]
        directions_DR = x_ND.T @ vectors / energies.sqrt() if few else vectors
        unit = float(x_ND.square().sum(1).mean())
        return cls(directions_DR, energies, x_ND @ directions_DR, residuals_NC.double(), unit)

    @one_thread()
    def part(self, ridge: float) -> Tensor:
        """Return D for this relative rho, float64 [C, D]; its last column is added to the bias."""
        moments_RC = self.coordinates.T @ self.residuals
        return (self.directions @ (moments_RC / self._shrunk(ridge)[:, None])).T

    @one_thread()
    def left_out(self, ridge: float) -> Tensor:
        """Return for each item what D adds to its outputs if D is fitted to all other items, float64 [N, C].

        With the leverage h_i of the item this is (D x_i - h_i r_i) / (1 - h_i), without a fit for each item.
        """
        shrunk_R = self._shrunk(ridge)
        fitted_NC = self.coordinates @ (self.coordinates.T @ self.residuals / shrunk_R[:, None])
        leverage_N1 = (self.coordinates.square() / shrunk_R).sum(1, keepdim=True)
        return (fitted_NC - leverage_N1 * self.residuals) / (1 - leverage_N1)

    def _shrunk(self, ridge: float) -> Tensor:
        return self.energies + ridge * self.unit
