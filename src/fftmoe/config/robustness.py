"""Defines the recipe's `robustness` section (docs/robustness.md)."""

import math
from typing import Annotated, Literal

from pydantic import Field

from fftmoe.config.fields import WRITE_OFF, Number, Section, off_or_section


class RobustnessSection(Section):
    """Says how a round's updates are aggregated if some of its clients may be malicious.

    `malicious_fraction` is the largest share of malicious clients in a round's cohort; a sampled cohort can have a
    larger share than the population. `few_contributors` says what happens to an expert that fewer clients trained than
    a robust mean needs: it moves by bounded steps (`bounded`), or not at all (`frozen`).
    """

    aggregator: Literal["norm-bound", "trimmed-mean", "median", "multi-krum"]
    """The robust mean: bounded norms, a trimmed mean or a median of every number, or multi-Krum."""
    malicious_fraction: Annotated[Number, Field(ge=0, lt=0.5)] = 0.2
    """The largest share of malicious clients in a round's cohort."""
    few_contributors: Literal["bounded", "frozen"] = "bounded"
    """What happens to an expert that fewer clients trained than a robust mean needs."""

    def num_malicious(self, clients_per_round: int) -> int:
        """Return f: the largest number of malicious updates in a round."""
        return math.ceil(round(self.malicious_fraction * clients_per_round, 9))  # in floats 0.07 * 100 is above 7


RobustnessOrOff = Annotated[
    RobustnessSection | None, off_or_section("robustness.aggregator, or `robustness: off`"), WRITE_OFF
]
