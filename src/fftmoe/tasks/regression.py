"""Judges regression: T numbers for each text.

Shape letters: B batch, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fftmoe.head import EachExample
from fftmoe.tasks.base import NO_BOUND, ratio
from fftmoe.tasks.share import no_share

Scales = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ScaledNumbers(EachExample):
    """Fits scaled numbers, (y_t - centre_t) / scale_t (`fftmoe.head.Answers`).

    Attributes:
        scales: see `Squares`.
    """

    scales: Scales = ()

    exclusive = False

    def targets(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return the scaled numbers, float64 [N, T]."""
        return _scaled(labels, self.scales)

    def groups(self, labels: Tensor, num_outputs: int, /) -> Tensor:
        """Return none, [B, 0]: every sum is over all examples."""
        return torch.zeros(len(labels), 0, dtype=torch.bool)


@dataclass(frozen=True)
class Squares:
    """Computes the squared error of scaled targets: L = mean_b mean_t (z_bt - (y_bt - centre_t) / scale_t)^2.

    Attributes:
        scales: (centre, scale) of each target; empty for targets that are used as they are. Scaled targets are of about
            1, which suits the learning rates.
    """

    scales: Scales = ()

    next_token = False

    def loss(self, outputs_BT: Tensor, targets_BT: Tensor, /) -> Tensor:
        """Return the mean over the batch and the targets."""
        return F.mse_loss(outputs_BT, _scaled(targets_BT, self.scales).to(outputs_BT.dtype))

    def items(self, labels: Tensor, /) -> int:
        """Return the number of texts."""
        return len(labels)


def _scaled(y_BT: Tensor, scales: Scales) -> Tensor:
    """Return (y - centre) / scale, float64 [B, T]."""
    if not scales:
        return y_BT.double()
    centres_T, scales_T = _scale_tensors(scales, y_BT)
    return (y_BT.double() - centres_T) / scales_T


def _scale_tensors(scales: Scales, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres and the scales, float64 [T] each, on the device of `like`."""
    centres_T, scales_T = torch.tensor(scales, dtype=torch.float64, device=like.device).T
    return centres_T, scales_T


@dataclass(frozen=True)
class Regression:
    """Measures mean absolute error, mean squared error and the coefficient of determination, each averaged over the
    targets.

    Attributes:
        scales: (centre, scale) of each target, from which outputs are brought to the units of the data; see `Squares`.
    """

    scales: Scales = ()

    metric = "mean_absolute_error"
    higher_is_better = False
    bounds = (0.0, NO_BOUND)
    share = no_share
    next_token = False
    by_token = False
    exclusive = False
    label_parts = 0

    def statistics(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return [B, 4T + 1]: for each target the absolute error, its square, the target and its square; and 1."""
        y_BT = batch["labels"].double()
        outputs_BT = logits.double()
        if self.scales:
            centres_T, scales_T = _scale_tensors(self.scales, logits)
            outputs_BT = outputs_BT * scales_T + centres_T
        error_BT = outputs_BT - y_BT
        return torch.cat([error_BT.abs(), error_BT**2, y_BT, y_BT**2, torch.ones_like(y_BT[:, :1])], 1)

    def decisions(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Return None: there are no labels."""

    def limits(self, num_outputs: int, num_rows: int, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the limits, [4T + 1] each; no target and no error has a bound but that of the metric."""
        error, square = num_rows * self.bounds[1], float(np.finfo(np.float32).max)
        most = np.repeat([error, square, error, square], num_outputs)
        least = np.repeat([0.0, 0.0, -error, 0.0], num_outputs)
        return np.append(least, num_rows), np.append(most, num_rows)

    def metrics(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics from sums [..., 4T + 1]."""
        means = ratio(sums[..., :-1], sums[..., -1:])
        absolute, square, mean, mean_square = np.split(means, 4, axis=-1)
        return {
            "mean_absolute_error": absolute.mean(-1),
            "mean_squared_error": square.mean(-1),
            "r2": _explained(square, mean_square - mean**2, mean_square).mean(-1),
        }


CONSTANT = 1e-13  # a variance below this share of the mean square is what rounding leaves of a constant


def _explained(square: np.ndarray, variance: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """Return 1 - square / variance; of a target that is constant, where that is 0/0 or -inf, 1 if it is met and
    otherwise 0.

    That is the rule of scikit-learn's `r2_score(force_finite=True)`.
    """
    constant = variance <= CONSTANT * mean_square
    met = np.where(square <= CONSTANT * mean_square, 1.0, 0.0)
    return np.where(
        constant, np.where(np.isnan(square), np.nan, met), 1 - ratio(square, np.where(constant, 1.0, variance))
    )
