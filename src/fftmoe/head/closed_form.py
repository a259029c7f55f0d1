"""The ridge-regression head from sums over clients: exact whatever the partition (docs/math.md, Closed-form head).

Shape letters: N examples, F features, C classes, D = F + 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.records import names

# Ridge strengths that are tried, relative to the mean eigenvalue of the features' second moments.
STRENGTHS = tuple(10.0 ** (e / 2) for e in range(-16, 5))


@dataclass(frozen=True)
class HeadSums:
    """What the closed form needs to know of a set of examples; sums of two sets are the sums of their union.

    Attributes:
        gram: sum of x xT, float64 [F + 1, F + 1], where x = [features, 1].
        moment: sum of x onehot(y)T, float64 [F + 1, C]; its last row counts the labels.
    """

    gram: Tensor
    moment: Tensor

    @classmethod
    def of(cls, features_NF: Tensor, labels_N: Tensor, num_labels: int) -> "HeadSums":
        """The sums of these examples."""
        x_ND = _with_one(features_NF)
        return cls(x_ND.T @ x_ND, x_ND.T @ F.one_hot(labels_N, num_labels).double())

    @classmethod
    def total(cls, parts: Iterable["HeadSums"]) -> "HeadSums":
        """The sums of the union; at least one part."""
        iterator = iter(parts)
        total = next(iterator)
        for part in iterator:
            total = cls(total.gram + part.gram, total.moment + part.moment)
        return total

    @property
    def num_examples(self) -> float:
        """N."""
        return float(self.gram[-1, -1])

    def to_tensors(self) -> dict[str, Tensor]:
        """For the wire: float32, of the symmetric gram its upper triangle alone."""
        rows, columns = torch.triu_indices(*self.gram.shape)
        return {"sums.gram": self.gram[rows, columns].float(), "sums.moment": self.moment.float()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "HeadSums":
        """Inverse of `to_tensors`, or of `few_tensors`, up to float32."""
        moment = tensors["sums.moment"].double()
        if "sums.factor" in tensors:
            factor_ND = tensors["sums.factor"].double()
            return cls(factor_ND.T @ factor_ND, moment)
        gram = torch.zeros(len(moment), len(moment), dtype=torch.float64)
        rows, columns = torch.triu_indices(*gram.shape)
        gram[rows, columns] = gram[columns, rows] = tensors["sums.gram"].double()
        return cls(gram, moment)


def are_few(num_examples: int, num_features: int) -> bool:
    """Whether N rows of D numbers are no more than half a gram."""
    return 2 * num_examples <= num_features + 1


def few_tensors(features_NF: Tensor, labels_N: Tensor, num_labels: int) -> dict[str, Tensor]:
    """The sums of few examples for the wire: in the place of the gram R of x = QR, N rows in the place of D.

    R follows from the gram up to the signs of its rows, and tells no more. The column of ones is the first to be
    factored, so that one row has all that sums over the examples, and loses nothing where these cancel.
    """
    x_ND = _with_one(features_NF)
    factor_ND = torch.linalg.qr(x_ND.flip(1), mode="r").R.flip(1)
    moment = x_ND.T @ F.one_hot(labels_N, num_labels).double()
    return {"sums.factor": factor_ND.float(), "sums.moment": moment.float()}


def sum_shapes(num_features: int, num_labels: int, num_examples: int | None) -> dict[str, tuple[int, ...]]:
    """Of what is sent of so many examples; None where nobody is to know how many."""
    side = num_features + 1
    gram: dict[str, tuple[int, ...]] = {"sums.gram": (side * (side + 1) // 2,)}
    if num_examples is not None and are_few(num_examples, num_features):
        gram = {"sums.factor": (num_examples, side)}
    return {**gram, "sums.moment": (side, num_labels)}


def _with_one(features_NF: Tensor) -> Tensor:
    return torch.cat([features_NF.double(), torch.ones(len(features_NF), 1, dtype=torch.float64)], 1)


def solve_ridge(sums: HeadSums, strength: float | None = None) -> tuple[Tensor, Tensor, float]:
    """W, b that minimise sum_i |W f_i + b - onehot(y_i)|^2 + rho (|W|^2 + |b|^2).

    Args:
        strength: rho relative to the gram's mean eigenvalue; None chooses it among `STRENGTHS` by generalised
            cross-validation (Golub, Heath and Wahba, 1979), which needs the sums alone and no held-out data.

    Returns:
        weight float32 [C, F], bias float32 [C], and the relative strength.
    """
    eigenvalues, vectors = torch.linalg.eigh(sums.gram)
    eigenvalues = eigenvalues.clamp_min(0)
    unit, projected = float(eigenvalues.mean()), vectors.T @ sums.moment
    tried = STRENGTHS if strength is None else (strength,)
    chosen = min(tried, key=lambda s: _gcv(s * unit, eigenvalues, projected, sums.num_examples))
    solution = vectors @ (projected / (eigenvalues + chosen * unit)[:, None])
    return solution[:-1].T.float().contiguous(), solution[-1].float().clone(), chosen


def solved_head(sums: HeadSums) -> dict[str, Tensor]:
    """The head that these sums give, as the tensors of a model's state."""
    weight, bias, _ = solve_ridge(sums)
    return {names.HEAD_WEIGHT: weight, names.HEAD_BIAS: bias}


def _gcv(rho: float, eigenvalues: Tensor, projected: Tensor, num_examples: float) -> float:
    """Mean squared residual over (1 - degrees of freedom / N)^2; infinite where the fit is saturated."""
    energy, shrunk = projected.square().sum(1), eigenvalues + rho
    # Every one-hot label has norm 1, so the labels' squared norm is N.
    residual = num_examples - 2 * (energy / shrunk).sum() + (energy * eigenvalues / shrunk**2).sum()
    freedom = float((eigenvalues / shrunk).sum())
    # Sums travel in float32; this is what their rounding may have made of the residual, to first order.
    noise = torch.finfo(torch.float32).eps * float(eigenvalues[-1]) * float((energy / shrunk**2).sum())
    if freedom >= num_examples or residual <= noise:
        return float("inf")
    return float(residual) / num_examples / (1 - freedom / num_examples) ** 2
