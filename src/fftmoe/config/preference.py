"""Defines the recipe's `preference` section."""

from typing import Literal

from pydantic import model_validator

from fftmoe.config.fields import NotNegative, Positive, Section

IMITATING = ("cpo", "orpo")
"""The losses that add a mean over the tokens of chosen answers, as `tasks/preference.py: PAIR_LOSSES` has them."""


class PreferenceSection(Section):
    """Says how a language model learns which of two answers is better (`backbone.task: preference`).

    The reference of `dpo` and `ipo` is the frozen backbone, the model with its adapter off: it costs no second model,
    and what it says of an answer is computed once.
    """

    loss: Literal["dpo", "ipo", "cpo", "simpo", "orpo"] = "dpo"
    """The loss of a pair of answers: DPO (arXiv 2305.18290) or IPO (2310.12036), which have a reference; or without
    one CPO (2401.08417), SimPO (2405.14734) or ORPO (2403.07691)."""
    beta: Positive = 0.1
    """How strongly rewards follow log-probabilities. A larger value keeps a loss with a reference closer to it; for
    `orpo` it is the weight of the odds ratio beside the imitation of chosen answers."""
    margin: NotNegative = 0.0
    """For `simpo`: by how much the reward of the chosen answer shall exceed that of the rejected one."""

    @model_validator(mode="after")
    def _margin_where_it_counts(self) -> "PreferenceSection":
        if self.margin and self.loss != "simpo":
            raise ValueError(
                f"preference.margin={self.margin:g} is for preference.loss=simpo, and {self.loss} has none; leave it "
                "out"
            )
        return self
