"""Defines the recipe's `head` section."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fftmoe.config.fields import Count, Positive, Section


class HeadSection(Section):
    """Describes the head, the last layer: clients train it, or the server computes it from their feature statistics.

    A closed-form head is computed before the first round. `update` says what happens to it afterwards: nothing
    (`frozen`), training and averaging (`trained`), or computing it again on the adapted features every `every` rounds
    and after the last (`recomputed`).
    """

    kind: Literal["averaged", "one-vs-all", "closed-form"]
    """How the head comes about: computed by the server from the clients' feature statistics (`closed-form`, ridge
    regression), or trained by clients and averaged, with the loss of the task (`averaged`; of one label a softmax), or
    for one label with one loss for each class (`one-vs-all`, arXiv 2511.05028)."""
    learning_rate: Positive | None = None
    """The rate of a head that clients train."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The optimizer of a head that clients train. AdamW forgets absent classes under label skew."""
    features: Literal["linear", "fourier"] = "linear"
    """What a closed-form head is linear in: the model's features, or random Fourier features of them."""
    num_features: Annotated[int, Field(ge=1, le=2**16)] = 2048
    """The number of random Fourier features. More of them fit more; a large client sends their square in bytes."""
    update: Literal["frozen", "trained", "recomputed"] = "recomputed"
    """What happens to a closed-form head after round 0: nothing (`frozen`), training (`trained`), or computing it
    again on the adapted features (`recomputed`)."""
    every: Count = 1
    """Compute the head again after so many rounds, and after the last."""

    @property
    def trained(self) -> bool:
        """Return whether clients train the head."""
        return self.kind != "closed-form" or self.update == "trained"

    def solved_after(self, round: int, last: int) -> bool:
        """Return whether the head is computed after `round` of `last` rounds; round 0 is before the first."""
        again = self.update == "recomputed" and (round % self.every == 0 or round == last)
        return self.kind == "closed-form" and (round == 0 or again)

    @model_validator(mode="after")
    def _rate_where_trained(self) -> "HeadSection":
        if self.trained and self.learning_rate is None:
            raise ValueError(f"a head of kind {self.kind} that clients train needs head.learning_rate, e.g. 1.0")
        return self
