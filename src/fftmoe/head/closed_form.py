"""Computes the ridge-regression head from feature statistics: exact for every partition (docs/math.md, Closed-form
head).

Shape letters: N items (the examples, or their labelled tokens), F features, C outputs, D = F + 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fftmoe.head.answers import ONE_LABEL, Answers, LabelAnswers
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
        moment: the sum of x yT, float64 [F + 1, C], where y are the targets (`answers.py`); of one-hot labels its last
            row counts them.
        squares: the sum of the squares of y, float64 [C]; None for one-hot labels, whose squares are themselves.
    """

    gram: Tensor
    moment: Tensor
    squares: Tensor | None = None

    @classmethod
    @one_thread()
    def of(cls, features_NF: Tensor, labels: Tensor, num_outputs: int, answers: Answers = ONE_LABEL) -> "HeadSums":
        """Return the statistics of these items.

        Args:
            labels: of the items, in the form of `answers`, which says what the head is fitted to.
        """
        x_ND, (y_NC, squares) = with_one(features_NF), _targets(labels, num_outputs, answers)
        return cls(x_ND.T @ x_ND, x_ND.T @ y_NC, squares)

    @classmethod
    def total(cls, parts: Iterable["HeadSums"]) -> "HeadSums":
        """Return the statistics of the union of these parts, at least one."""
        iterator = iter(parts)
        total = next(iterator)
        for part in iterator:
            squares = None if total.squares is None or part.squares is None else total.squares + part.squares
            total = cls(total.gram + part.gram, total.moment + part.moment, squares)
        return total

    def scaled(self, share: float) -> "HeadSums":
        """Return the statistics of the same items with this weight."""
        squares = None if self.squares is None else share * self.squares
        return HeadSums(share * self.gram, share * self.moment, squares)

    @property
    def num_items(self) -> float:
        """Return N."""
        return float(self.gram[-1, -1])

    @property
    def energy(self) -> Tensor:
        """Return the sum of the squares of y, float64 [C]."""
        return self.moment[-1] if self.squares is None else self.squares

    @property
    def size(self) -> Tensor:
        """Return the sum of the squares of x, and of y where its squares are sent, float64 []: it grows with more or
        longer features, and with larger numbers to fit.
        """
        return self.gram.trace() if self.squares is None else self.gram.trace() + self.squares.sum()

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the form in which they are sent: float32, and only the upper triangle of the symmetric Gram matrix."""
        rows, columns = torch.triu_indices(*self.gram.shape)
        return {
            names.STATISTICS_GRAM: self.gram[rows, columns].float(),
            names.STATISTICS_MOMENT: self.moment.float(),
            **_sent(self.squares),
        }

    @classmethod
    @one_thread()
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "HeadSums":
        """Return the inverse of `to_tensors` or `few_tensors`, up to rounding to float32."""
        moment = tensors[names.STATISTICS_MOMENT].double()
        squares = tensors[names.STATISTICS_SQUARES].double() if names.STATISTICS_SQUARES in tensors else None
        if names.STATISTICS_FACTOR in tensors:
            factor_ND = tensors[names.STATISTICS_FACTOR].double()
            return cls(factor_ND.T @ factor_ND, moment, squares)
        gram = torch.zeros(len(moment), len(moment), dtype=torch.float64)
        rows, columns = torch.triu_indices(*gram.shape)
        gram[rows, columns] = gram[columns, rows] = tensors[names.STATISTICS_GRAM].double()
        return cls(gram, moment, squares)


def are_few(num_examples: int, num_features: int) -> bool:
    """Return whether N rows of D numbers take at most half the space of a Gram matrix."""
    return 2 * num_examples <= num_features + 1


@one_thread()
def few_tensors(
    features_NF: Tensor, labels: Tensor, num_outputs: int, answers: Answers = ONE_LABEL
) -> dict[str, Tensor]:
    """Return the statistics of few examples, ready to be sent: R of x = QR, with N rows, instead of the Gram matrix.

    The Gram matrix determines R up to the signs of its rows, so R reveals nothing more. The column of ones is factored
    first, so that a single row holds all sums over the examples, and nothing is lost where they cancel.
    """
    x_ND, (y_NC, squares) = with_one(features_NF), _targets(labels, num_outputs, answers)
    factor_ND = torch.linalg.qr(x_ND.flip(1), mode="r").R.flip(1)
    sent = {names.STATISTICS_FACTOR: factor_ND.float(), names.STATISTICS_MOMENT: (x_ND.T @ y_NC).float()}
    return {**sent, **_sent(squares)}


def sum_shapes(
    num_features: int, num_outputs: int, num_examples: int | None, answers: Answers = ONE_LABEL
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that are sent for this many examples; None if the number must stay unknown.

    With the statistics go the sums from which the temperature is found (`temperature.py`), where there is one.
    """
    side = num_features + 1
    shapes: dict[str, tuple[int, ...]] = {names.STATISTICS_GRAM: (side * (side + 1) // 2,)}
    if num_examples is not None and answers.one_each and are_few(num_examples, num_features):
        shapes = {names.STATISTICS_FACTOR: (num_examples, side)}
    shapes[names.STATISTICS_MOMENT] = (side, num_outputs)
    if not answers.exclusive:
        shapes[names.STATISTICS_SQUARES] = (num_outputs,)
    if isinstance(answers, LabelAnswers):
        shapes[names.STATISTICS_SCORES] = SCORES_SHAPE
    return shapes


def _targets(labels: Tensor, num_outputs: int, answers: Answers) -> tuple[Tensor, Tensor | None]:
    """Return y, float64 [N, C], and the sums of its squares where they are sent."""
    y_NC = answers.targets(labels, num_outputs)
    return y_NC, None if answers.exclusive else y_NC.square().sum(0)


def _sent(squares: Tensor | None) -> dict[str, Tensor]:
    return {} if squares is None else {names.STATISTICS_SQUARES: squares.float()}


def with_one(features_NF: Tensor) -> Tensor:
    """Return x = [features, 1], float64 [N, D]."""
    return torch.cat([features_NF.double(), torch.ones(len(features_NF), 1, dtype=torch.float64)], 1)


def solve_ridge(sums: HeadSums, strength: float | None = None) -> tuple[Tensor, Tensor, float]:
    """Return W, b that minimise sum_i |W f_i + b - y_i|^2 + rho (|W|^2 + |b|^2).

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
    energy = float(sums.energy.sum())
    chosen = min(tried, key=lambda s: cross_validation_error(s * unit, eigenvalues, projected, energy, sums.num_items))
    solution = vectors @ (projected / (eigenvalues + chosen * unit)[:, None])
    leverage = float((eigenvalues / (eigenvalues + chosen * unit)).sum()) / max(sums.num_items, 1.0)
    return solution[:-1].T.float().contiguous(), solution[-1].float().clone(), chosen, leverage


def solved_head(sums: HeadSums) -> dict[str, Tensor]:
    """Return the head that these sums give, as the tensors of a model's state."""
    return solved_with_leverage(sums)[0]


def solved_with_leverage(sums: HeadSums) -> tuple[dict[str, Tensor], float]:
    """Return the head that these sums give, and the mean leverage of the examples in it."""
    weight, bias, _, leverage = _solve(sums, None)
    return {names.HEAD_WEIGHT: weight, names.HEAD_BIAS: bias}, leverage


def cross_validation_error(
    rho: float, eigenvalues: Tensor, projected: Tensor, squares: float, num_items: float
) -> float:
    """Return the mean squared residual divided by (1 - degrees of freedom / N)^2; infinite if the fit is saturated.

    Args:
        squares: the sum of the squares of all targets; N for one-hot labels.
    """
    energy, shrunk = projected.square().sum(1), eigenvalues + rho
    residual = squares - 2 * (energy / shrunk).sum() + (energy * eigenvalues / shrunk**2).sum()
    freedom = float((eigenvalues / shrunk).sum())
    # Statistics are sent in float32; to first order, this is how much their rounding can change the residual.
    noise = torch.finfo(torch.float32).eps * float(eigenvalues[-1]) * float((energy / shrunk**2).sum())
    if freedom >= num_items or residual <= noise:
        return float("inf")
    return float(residual) / num_items / (1 - freedom / num_items) ** 2
