"""Changes the learning rates of clients over the rounds of a run (docs/math.md, Learning rates over rounds)."""

import math
from dataclasses import dataclass, replace

from fftmoe.records.messages import Training

FACTOR_DIGITS = 9  # of a factor: mathematical libraries differ in the last digit, and a site computes the factor again


@dataclass(frozen=True)
class Schedule:
    """`Schedule` multiplies the learning rates of a round by a factor that depends on the number of the round alone.

    Attributes:
        kind: of the rounds after the warm-up: "constant", "linear" or "cosine".
        warmup: rounds with a smaller rate at the beginning.
        rounds: of the run.
    """

    kind: str = "constant"
    warmup: int = 0
    rounds: int = 1

    def factor(self, round: int) -> float:
        """Return the factor of a round, from 1 to `rounds`; above 0 and at most 1."""
        if round <= self.warmup:
            return _rounded(round / (self.warmup + 1))
        if self.kind == "constant":
            return 1.0
        past = (round - self.warmup - 1) / (self.rounds - self.warmup)
        return _rounded(1 - past if self.kind == "linear" else math.cos(math.pi / 2 * past) ** 2)

    def over_run(self, training: Training) -> Training:
        """Return training that goes through the factors of all rounds in its own steps, for what trains outside of
        rounds as much as a run does.
        """
        factors = tuple(self.factor(round) for round in range(1, self.rounds + 1))
        return training if all(factor == 1 for factor in factors) else replace(training, rate_factors=factors)

    def at(self, training: Training, round: int) -> Training:
        """Return the training of a round, with both learning rates multiplied by its factor."""
        factor = self.factor(round)
        if factor == 1:
            return training
        return replace(
            training,
            learning_rate=training.learning_rate * factor,
            head_learning_rate=training.head_learning_rate * factor,
        )


def _rounded(factor: float) -> float:
    return float(f"{factor:.{FACTOR_DIGITS}g}")
