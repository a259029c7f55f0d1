"""Describes a noisy sum that was released, as the accountant of differential privacy counts it."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Release:
    """`Release` describes Gaussian noise on a sum over a random sample, released one or more times.

    Attributes:
        sampling_rate: q, the probability that a record (a client, or an example of a client) is in the sum,
            independently of all other records (Poisson sampling).
        noise_multiplier: z, the standard deviation of the noise, divided by the largest norm of one record's part.
        times: how often it was released, each time with a new sample and new noise.
    """

    sampling_rate: float
    noise_multiplier: float
    times: int = 1

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is outside of its range.
        """
        if not (0 < self.sampling_rate <= 1 and 0 < self.noise_multiplier < float("inf") and self.times >= 0):
            raise ValueError(f"a release cannot have the values {self}")

    def again(self, times: int = 1) -> "Release":
        """Return the release, made so many times more."""
        return replace(self, times=self.times + times)

    def repeated(self, times: int) -> "Release":
        """Return the release, made `times` as often."""
        return replace(self, times=self.times * times)
