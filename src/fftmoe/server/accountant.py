"""What noisy rounds cost: client-level epsilon by privacy loss distributions (docs/math.md, Privacy).

Two federations are neighbours if one client's data is there in the one and in the other that client sends nothing.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from fftmoe.errors import InputError
from fftmoe.methods.noise import Uniform, os_uniform

LEAST_NOISE = 0.3  # z; below it one round costs an epsilon of about ten, and the accountant needs ever larger grids
MOST_NOISE = 2.0**20
PRECISION = 1e-3  # relative, of a noise multiplier that is solved for
GRID = 1e-4  # of privacy losses; rounding to it can only raise epsilon
COUNT_SHARE = 0.04  # of 1 / z^2, spent on counting who was not clipped
CLIP_RATE = 0.2  # how fast the clip norm follows (Andrew et al., arXiv 1905.03871, section 3)


def accounting() -> Any:
    """The privacy loss distributions of Google's dp_accounting, loaded where they are needed: it is an extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        import dp_accounting.pld
    except ImportError as error:
        raise InputError(
            f"differential privacy needs {error.name or error} to count its epsilon: pip install 'fftmoe[dp]'"
        ) from error
    return dp_accounting.pld.privacy_loss_distribution


@dataclass(frozen=True)
class Mechanism:
    """One release: a sum over a Poisson sample of the clients, with Gaussian noise.

    Attributes:
        sampling_rate: q, with which each client is in a round, whoever else is.
        noise_multiplier: z, standard deviation of the noise over the most that one client can move the sum.
        delta: of the guarantee.
    """

    sampling_rate: float
    noise_multiplier: float
    delta: float

    def epsilon(self, releases: int) -> float:
        """An upper bound of epsilon after so many releases."""
        return float(self._one.self_compose(releases).get_epsilon_for_delta(self.delta)) if releases else 0.0

    @cached_property
    def _one(self) -> Any:
        """The privacy loss distribution of one release, which takes longer to make than to compose."""
        return accounting().from_gaussian_mechanism(
            self.noise_multiplier, sampling_prob=self.sampling_rate, value_discretization_interval=GRID
        )


def calibrate(sampling_rate: float, epsilon: float, delta: float, releases: int) -> float:
    """The least noise multiplier, up to `PRECISION`, at which so many releases cost at most `epsilon`.

    Raises:
        InputError: no noise does, or `dp-accounting` is missing.
    """
    accounting()
    from scipy.optimize import brentq  # comes with it

    @cache
    def excess(log_noise: float) -> float:
        return Mechanism(sampling_rate, math.exp(log_noise), delta).epsilon(releases) - epsilon

    least, step, high = math.log(LEAST_NOISE), math.log(2), 0.0
    while excess(high) > 0:
        high += step
        if high > math.log(MOST_NOISE):
            raise InputError(f"no noise gives {releases} rounds an epsilon of {epsilon:g}; raise privacy.epsilon")
    while excess(low := max(least, high - step)) <= 0:
        if low == least:
            return math.exp(least)
        high = low
    found: Any = brentq(excess, low, high, xtol=PRECISION)
    while excess(found) > 0:
        found += PRECISION
    return math.exp(found)


def poisson_cohort(num_clients: int, rate: float, uniform: Uniform = os_uniform) -> tuple[int, ...]:
    """Each client with probability `rate`, whatever becomes of the others: ascending, and perhaps nobody."""
    return tuple(np.flatnonzero(uniform(num_clients) <= rate).tolist())


def divided_noise(noise_multiplier: float) -> tuple[float, float]:
    """Noise on the changes, in units of C, and on the count of who was not clipped, whose sensitivity is 1/2.

    Together they cost what `noise_multiplier` alone would: z^-2 = z_delta^-2 + (2 sigma_b)^-2.
    """
    z_delta = noise_multiplier / math.sqrt(1 - COUNT_SHARE)
    return z_delta, noise_multiplier / (2 * math.sqrt(COUNT_SHARE))


def next_clip_norm(clip_norm: float, within: float, quantile: float) -> float:
    """C moved towards the quantile of the clients' norms, by the (noisy) share of them that was not clipped."""
    return clip_norm * math.exp(-CLIP_RATE * (within - quantile))
