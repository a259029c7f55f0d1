"""Computes the ridge-regression head from feature statistics: exact for every partition (docs/math.md, Closed-form
head).

Shape letters: N examples, F features, C classes, D = F + 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.head.temperature import SCORES_SHAPE
from fftmoe.records import names
from fftmoe.threads import one_thread

# The ridge strengths to choose from, relative to the mean eigenvalue of the features' second moments.
STRENGTHS = tuple(10.0 ** (e / 2) for e in range(-16, 5))


@dataclass(frozen=True)
class HeadSums:
    """Holds the feature statistics of a set of examples; those of two disjoint sets add up to those of their union.

    Attributes:
        gram: the sum of x xT, float64 [F + 1, F + 1], where x = [features, 1].
        moment: the sum of x onehot(y)T, float64 [F + 1, C]; its last row counts the labels.
    """

    gram: Tensor
    moment: Tensor

    @classmethod
    @one_thread()
    def of(cls, features_NF: Tensor, labels_N: Tensor, num_labels: int) -> "HeadSums":
        """Return the statistics of these examples."""
        x_ND = _with_one(features_NF)
        return cls(x_ND.T @ x_ND, x_ND.T @ F.one_hot(labels_N, num_labels).double())

    @classmethod
    def total(cls, parts: Iterable["HeadSums"]) -> "HeadSums":
        """Return the statistics of the union of these parts, at least one."""
        iterator = iter(parts)
        total = next(iterator)
        for part in iterator:
            total = cls(total.gram + part.gram, total.moment + part.moment)
        return total

    @property
    def num_examples(self) -> float:
        """Return N."""
        return float(self.gram[-1, -1])

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the form in which they are sent: float32, and only the upper triangle of the symmetric Gram matrix."""
        rows, columns = torch.triu_indices(*self.gram.shape)
        return {names.STATISTICS_GRAM: self.gram[rows, columns].float(), names.STATISTICS_MOMENT: self.moment.float()}

    @classmethod
    @one_thread()
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "HeadSums":
        """Return the inverse of `to_tensors` or `few_tensors`, up to rounding to float32."""
        moment = tensors[names.STATISTICS_MOMENT].double()
        if names.STATISTICS_FACTOR in tensors:
            factor_ND = tensors[names.STATISTICS_FACTOR].double()
            return cls(factor_ND.T @ factor_ND, moment)
        gram = torch.zeros(len(moment), len(moment), dtype=torch.float64)
        rows, columns = torch.triu_indices(*gram.shape)
        gram[rows, columns] = gram[columns, rows] = tensors[names.STATISTICS_GRAM].double()
        return cls(gram, moment)


def are_few(num_examples: int, num_features: int) -> bool:
    """Return whether N rows of D numbers take at most half the space of a Gram matrix."""
    return 2 * num_examples <= num_features + 1


@one_thread()
def few_tensors(features_NF: Tensor, labels_N: Tensor, num_labels: int) -> dict[str, Tensor]:
    """Return the statistics of few examples, ready to be sent: R of x = QR, with N rows, instead of the Gram matrix.

    The Gram matrix determines R up to the signs of its rows, so R reveals nothing more. The column of ones is factored
    first, so that a single row holds all sums over the examples, and nothing is lost where they cancel.
    """
    x_ND = _with_one(features_NF)
    factor_ND = torch.linalg.qr(x_ND.flip(1), mode="r").R.flip(1)
    moment = x_ND.T @ F.one_hot(labels_N, num_labels).double()
    return {names.STATISTICS_FACTOR: factor_ND.float(), names.STATISTICS_MOMENT: moment.float()}


def sum_shapes(num_features: int, num_labels: int, num_examples: int | None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that are sent for this many examples; None if the number must stay unknown.

    With the statistics go the sums from which the temperature is found (`temperature.py`).
    """
    side = num_features + 1
    gram: dict[str, tuple[int, ...]] = {names.STATISTICS_GRAM: (side * (side + 1) // 2,)}
    if num_examples is not None and are_few(num_examples, num_features):
        gram = {names.STATISTICS_FACTOR: (num_examples, side)}
    return {**gram, names.STATISTICS_MOMENT: (side, num_labels), names.STATISTICS_SCORES: SCORES_SHAPE}


def _with_one(features_NF: Tensor) -> Tensor:
    return torch.cat([features_NF.double(), torch.ones(len(features_NF), 1, dtype=torch.float64)], 1)


def solve_ridge(sums: HeadSums, strength: float | None = None) -> tuple[Tensor, Tensor, float]:
    """Return W, b that minimise sum_i |W f_i + b - onehot(y_i)|^2 + rho (|W|^2 + |b|^2).

    Args:
        sums: the feature statistics of the examples.
        strength: rho relative to the mean eigenvalue of the Gram matrix; None to choose it among `STRENGTHS` by
            generalised cross-validation (Golub, Heath and Wahba, 1979), which needs only the statistics and no
            held-out data.

    Returns:
        weight float32 [C, F], bias float32 [C], and the relative strength.
    """
    return _solve(sums, strength)[:3]


@one_thread()
def _solve(sums: HeadSums, strength: float | None) -> tuple[Tensor, Tensor, float, float]:
    """Return what `solve_ridge` returns, and the mean leverage of the examples: the degrees of freedom divided by N."""
    eigenvalues, vectors = torch.linalg.eigh(sums.gram)
    eigenvalues = eigenvalues.clamp_min(0)
    unit, projected = float(eigenvalues.mean()), vectors.T @ sums.moment
    tried = STRENGTHS if strength is None else (strength,)
    chosen = min(tried, key=lambda s: cross_validation_error(s * unit, eigenvalues, projected, sums.num_examples))
    solution = vectors @ (projected / (eigenvalues + chosen * unit)[:, None])
    leverage = float((eigenvalues / (eigenvalues + chosen * unit)).sum()) / max(sums.num_examples, 1.0)
    return solution[:-1].T.float().contiguous(), solution[-1].float().clone(), chosen, leverage


def solved_head(sums: HeadSums) -> dict[str, Tensor]:
    """Return the head that these sums give, as the tensors of a model's state."""
    return solved_with_leverage(sums)[0]


def solved_with_leverage(sums: HeadSums) -> tuple[dict[str, Tensor], float]:
    """Return the head that these sums give, and the mean leverage of the examples in it."""
    weight, bias, _, leverage = _solve(sums, None)
    return {names.HEAD_WEIGHT: weight, names.HEAD_BIAS: bias}, leverage


def cross_validation_error(rho: float, eigenvalues: Tensor, projected: Tensor, num_examples: float) -> float:
    """Return the mean squared residual divided by (1 - degrees of freedom / N)^2; infinite if the fit is saturated."""
    energy, shrunk = projected.square().sum(1), eigenvalues + rho
    # Every one-hot label has norm 1, so the labels' squared norm is N.
    residual = num_examples - 2 * (energy / shrunk).sum() + (energy * eigenvalues / shrunk**2).sum()
    freedom = float((eigenvalues / shrunk).sum())
    # Statistics are sent in float32; to first order, this is how much their rounding can change the residual.
    noise = torch.finfo(torch.float32).eps * float(eigenvalues[-1]) * float((energy / shrunk**2).sum())
    if freedom >= num_examples or residual <= noise:
        return float("inf")
    return float(residual) / num_examples / (1 - freedom / num_examples) ** 2
