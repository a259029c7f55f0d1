"""What a recipe may say of clients that are malicious (docs/robustness.md)."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fftmoe.config.fields import OFF_AS_SAID, Number, Section, stated

if TYPE_CHECKING:
    from fftmoe.config.schema import Recipe

METHODS = ("fft-moe", "fedit", "ffa-lora", "fedsa-lora", "head-only")  # a mean of deltas is all that they merge by


class Robustness(Section):
    """How a round's updates are merged where some of its clients may be malicious.

    `malicious_fraction` is the largest share of a round's cohort that may be; a cohort that is drawn can have a larger
    one than the population. `few_contributors` says what becomes of an expert that fewer clients trained than a robust
    mean needs: it moves by bounded steps (`bounded`), or not at all (`frozen`).
    """

    aggregator: Literal["norm-bound", "trimmed-mean", "median", "multi-krum"]
    malicious_fraction: Annotated[Number, Field(ge=0, lt=0.5)] = 0.2
    few_contributors: Literal["bounded", "frozen"] = "bounded"

    def num_malicious(self, clients_per_round: int) -> int:
        """f: how many updates of a round may be anything."""
        return math.ceil(round(self.malicious_fraction * clients_per_round, 9))  # in floats 0.07 * 100 is above 7

    def check(self, recipe: "Recipe") -> None:
        """Whether the recipe can be merged so.

        Raises:
            ValueError: it is merged in another way; the message says what to change.
        """
        asked, federation = f"robustness.aggregator={self.aggregator}", recipe.federation
        if recipe.method not in METHODS:
            raise ValueError(
                f"method {recipe.method} has a merge of its own (or none), and {asked} cannot take its place; use one "
                f"of {', '.join(METHODS)}, or leave robustness out"
            )
        if federation.aggregation != "per-expert" or federation.activation_power:
            raise ValueError(
                f"{asked} counts each client that trained an expert as one, so federation.aggregation="
                f"{federation.aggregation} and federation.activation_power={federation.activation_power:g} have no "
                "place; leave both out"
            )


RobustnessSection = Annotated[Robustness | None, stated("robustness.aggregator, or `robustness: off`"), OFF_AS_SAID]
"""`off`, or a section."""
