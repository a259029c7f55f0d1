"""The recipe's `head` section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fftmoe.config.fields import Count, Positive, Section


class HeadSection(Section):
    """The classification head: clients train it, or the server computes it from their feature statistics.

    A closed-form head is computed before the first round. `update` says what happens to it afterwards: nothing
    (`frozen`), training and averaging (`trained`), or computing it again on the adapted features every `every` rounds
    and after the last (`recomputed`).
    """

    kind: Literal["averaged", "one-vs-all", "closed-form"]
    learning_rate: Positive | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    features: Literal["linear", "fourier"] = "linear"
    num_features: Annotated[int, Field(ge=1, le=2**16)] = 2048
    update: Literal["frozen", "trained", "recomputed"] = "recomputed"
    every: Count = 1

    @property
    def trained(self) -> bool:
        """Whether clients train the head."""
        return self.kind != "closed-form" or self.update == "trained"

    def solved_after(self, round: int, last: int) -> bool:
        """Whether the head is computed after `round` of `last` rounds; round 0 is before the first."""
        again = self.update == "recomputed" and (round % self.every == 0 or round == last)
        return self.kind == "closed-form" and (round == 0 or again)

    @model_validator(mode="after")
    def _rate_where_trained(self) -> "HeadSection":
        if self.trained and self.learning_rate is None:
            raise ValueError(f"a head of kind {self.kind} that clients train needs head.learning_rate, e.g. 1.0")
        return self
