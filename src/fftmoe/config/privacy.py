"""Defines the recipe's `privacy` section (docs/privacy.md)."""

from typing import Annotated

from pydantic import Field, model_validator

from fftmoe.config.fields import OFF_IS_NONE, WRITE_OFF, Count, Number, Positive, Section, off_or_section

NoiseMultiplier = Annotated[Number, Field(ge=0.3)]
Probability = Annotated[Number, Field(gt=0, lt=1)]


class ExamplePrivacySection(Section):
    """Asks for differential privacy of each client's examples: the client adds noise to the gradient of every local
    step.

    An example's gradient is clipped to `clip_norm`, over all trained tensors. `epsilon` ends the run before the round
    after which a client's examples would have cost more, at `delta`.
    """

    clip_norm: Positive
    """The largest norm of one example's gradient, over all trained tensors (arXiv 1607.00133)."""
    noise_multiplier: NoiseMultiplier
    """The standard deviation of the noise on a sum of gradients, divided by `clip_norm`."""
    delta: Probability
    """The delta of the guarantee; well below one over the number of a client's rows."""
    epsilon: Positive | None = None
    """End the run before the round in which a client's examples would cost more than this."""


class PrivacySection(Section):
    """Makes the server keep only sums over clients; with noise this gives client-level differential privacy.

    A tensor or expert stays unchanged if fewer than `min_contributors` clients contribute to it. `clip_norm` bounds the
    norm of a client's update, over all its tensors together.

    `noise_multiplier` or `epsilon` asks for differential privacy at `delta`. `epsilon` without a `noise_multiplier`
    finds the noise with which all rounds together stay within it; next to a `noise_multiplier` it ends the run before
    the round that would exceed it. With `clip_quantile` the clip norm starts at `clip_norm` and follows that quantile
    of the clients' norms; only the server clips then, because it has to see the norms.

    `examples` protects single examples instead of whole clients, also from the server.
    """

    min_contributors: Count = 3
    """Leave a tensor or an expert as it is if fewer clients contributed to it."""
    clip_norm: Positive | None = None
    """The largest norm of one client's update, over all its tensors."""
    clip_quantile: Probability | None = None
    """Let `clip_norm` follow this quantile of the clients' norms (arXiv 1905.03871)."""
    noise_multiplier: NoiseMultiplier | None = None
    """The standard deviation of the noise on the sum of updates, divided by `clip_norm`."""
    epsilon: Positive | None = None
    """The guarantee for a client: find the noise with which all rounds stay within it, or end the run before it is
    exceeded."""
    delta: Probability | None = None
    """The delta of the guarantee for a client; well below one over the number of clients."""
    examples: Annotated[ExamplePrivacySection | None, OFF_IS_NONE] = None
    """Protect single examples instead of whole clients, also from the server; or `off`."""

    @property
    def noisy(self) -> bool:
        """Return whether the recipe asks for client-level differential privacy."""
        return self.noise_multiplier is not None or self.epsilon is not None

    @property
    def differential(self) -> bool:
        """Return whether the recipe asks for differential privacy, of clients or of single examples."""
        return self.noisy or self.examples is not None

    @property
    def clip_by_clients(self) -> float | None:
        """Return the norm to which clients clip their updates; None if they do not clip."""
        return self.clip_norm if self.clip_quantile is None else None

    @model_validator(mode="after")
    def _complete(self) -> "PrivacySection":
        if self.noisy and (self.clip_norm is None or self.delta is None):
            raise ValueError(
                "differential privacy needs privacy.clip_norm, the largest norm of one client's update, and "
                "privacy.delta, well below one over the number of clients; set both"
            )
        if not self.noisy and (self.delta is not None or self.clip_quantile is not None):
            raise ValueError(
                "privacy.delta and privacy.clip_quantile belong to differential privacy; set privacy.epsilon or "
                "privacy.noise_multiplier as well, or leave them out"
            )
        return self


PrivacyOrOff = Annotated[
    PrivacySection | None, off_or_section("`privacy: {}` for sums only, or `privacy: off`"), WRITE_OFF
]
