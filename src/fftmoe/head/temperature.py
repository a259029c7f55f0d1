"""Chooses the temperature of a closed-form head: softmax(z / T) of its outputs z are probabilities (docs/math.md).

Least squares fits z to the one-hot label, so z lies between about 0 and 1, and the softmax of z itself is nearly flat.
Where an example may have several labels, z is fitted to 1 and -1, and sigmoid(z / T) is the probability of each.
T is the one with the smallest cross-entropy of leave-one-out outputs on the training examples. An example with leverage
h has the leave-one-out output y - (y - z) / (1 - h). All examples get the mean leverage, as in generalised
cross-validation. Clients do not know it, so they send the cross-entropy for several leverages and temperatures.

T has a lower bound, because n right answers do not show errors to be rarer than about one in 2 n (Jeffreys, 1946).

Shape letters: N examples, C classes, H leverages, T temperatures.
"""

import math

import torch
from torch import Tensor

from fftmoe.head.answers import ONE_LABEL, LabelAnswers

LEVERAGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
TEMPERATURES = tuple(0.01 * 1.4**step for step in range(16))
SCORES_SHAPE = (len(LEVERAGES), len(TEMPERATURES))
LARGEST_SCORE = 1e30  # far above that of any head that has learnt something; a sum must be finite in float32


def score_sums(outputs_NC: Tensor, labels: Tensor, answers: LabelAnswers = ONE_LABEL) -> Tensor:
    """Return the cross-entropy of these items, summed over them, float64 [H, T].

    Args:
        labels: of the items, in the form of `answers`, which says what the head is fitted to.
    """
    outputs_NC = outputs_NC.double()
    errors_NC = outputs_NC - answers.targets(labels, outputs_NC.shape[1])
    sums = [
        answers.cross_entropies((outputs_NC + errors_NC * (leverage / (1 - leverage))) / temperature, labels).sum()
        for leverage in LEVERAGES
        for temperature in TEMPERATURES
    ]
    found = torch.stack(sums).view(SCORES_SHAPE)
    return found.nan_to_num(LARGEST_SCORE, posinf=LARGEST_SCORE).clamp_max(LARGEST_SCORE)


def best_temperature(scores_HT: Tensor, leverage: float, num_examples: float, num_classes: int) -> float:
    """Return the temperature with the smallest sum for this mean leverage, or the smallest that these examples allow.

    Sums between two leverages are interpolated, and so is the minimum between temperatures, by a parabola through the
    smallest sum and its neighbours.

    Args:
        scores_HT: of all items. leverage: their mean. num_examples: how many there are.
        num_classes: among how many a probability chooses (`LabelAnswers.choices`).
    """
    scores_T = _at(scores_HT.double(), min(max(leverage, LEVERAGES[0]), LEVERAGES[-1]))
    best = int(scores_T.argmin())
    step = 0.0
    if 0 < best < len(TEMPERATURES) - 1:
        below, here, above = scores_T[best - 1 : best + 2].tolist()
        curvature = below - 2 * here + above
        step = 0.5 * (below - above) / curvature if curvature > 0 else 0.0
    found = TEMPERATURES[best] * (TEMPERATURES[1] / TEMPERATURES[0]) ** max(-1.0, min(1.0, step))
    return max(found, _smallest(num_examples, num_classes))


def _smallest(num_examples: float, num_classes: int) -> float:
    """Return the temperature at which the surest output, 1 for a class and 0 for all others, is wrong once in 2 N."""
    return 1 / math.log(max(2 * num_examples * (num_classes - 1), 2))


def _at(scores_HT: Tensor, leverage: float) -> Tensor:
    """Return the sums for a leverage between two of `LEVERAGES`, [T]."""
    high = next(place for place, known in enumerate(LEVERAGES) if leverage <= known)
    low = max(high - 1, 0)
    width = LEVERAGES[high] - LEVERAGES[low]
    share = (leverage - LEVERAGES[low]) / width if width else 0.0
    return scores_HT[low] * (1 - share) + scores_HT[high] * share


def usable(temperature: float) -> bool:
    """Return whether a number that was read can be a temperature of `best_temperature`."""
    return math.isfinite(temperature) and TEMPERATURES[0] / 2 <= temperature <= 2 * TEMPERATURES[-1]
