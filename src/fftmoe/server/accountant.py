"""Counts the client-level epsilon of noisy rounds with privacy loss distributions (docs/math.md, Privacy).

Two federations are neighbours if they differ in one client only: it takes part in one and sends nothing in the other.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from fftmoe.errors import InputError
from fftmoe.methods.noise import Uniform, os_uniform

LEAST_NOISE = 0.3  # z; below it one round costs an epsilon of about ten, and the accountant needs very large grids
MOST_NOISE = 2.0**20
PRECISION = 1e-3  # relative error of a calibrated noise multiplier
GRID = 1e-4  # step of the grid of privacy losses; losses are rounded up to it, which can only raise epsilon
COUNT_SHARE = 0.04  # share of the privacy cost 1 / z^2 that pays for counting the unclipped clients
CLIP_RATE = 0.2  # learning rate of the clip norm (Andrew et al., arXiv 1905.03871, section 3)


def accounting() -> Any:
    """Import the privacy loss distributions of Google's `dp_accounting`, which is an optional dependency.

    Raises:
        InputError: `dp_accounting` is not installed.
    """
    try:
        import dp_accounting.pld
    except ImportError as error:
        raise InputError(
            f"differential privacy needs {error.name or error} to compute epsilon; pip install 'fftmoe[dp]'"
        ) from error
    return dp_accounting.pld.privacy_loss_distribution


@dataclass(frozen=True)
class Mechanism:
    """The Gaussian mechanism that a round applies: a noisy sum over a Poisson sample of the clients.

    Attributes:
        sampling_rate: q, the probability that a client takes part in a round, independently of the other clients.
        noise_multiplier: z, the standard deviation of the noise divided by the sensitivity of the sum to one client.
        delta: the delta of the (epsilon, delta) guarantee.
    """

    sampling_rate: float
    noise_multiplier: float
    delta: float

    def epsilon(self, releases: int) -> float:
        """Return an upper bound of epsilon after this number of releases."""
        return float(self._one.self_compose(releases).get_epsilon_for_delta(self.delta)) if releases else 0.0

    @cached_property
    def _one(self) -> Any:
        """The privacy loss distribution of one release, cached because it takes longer to make than to compose."""
        return accounting().from_gaussian_mechanism(
            self.noise_multiplier, sampling_prob=self.sampling_rate, value_discretization_interval=GRID
        )


def calibrate(sampling_rate: float, epsilon: float, delta: float, releases: int) -> float:
    """Find the least noise multiplier, up to `PRECISION`, with which this many releases cost at most `epsilon`.

    Raises:
        InputError: no noise multiplier is large enough, or `dp-accounting` is not installed.
    """
    accounting()
    from scipy.optimize import brentq  # a dependency of dp_accounting

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
    """Draw each client independently with probability `rate`; client ids in ascending order, possibly none."""
    return tuple(np.flatnonzero(uniform(num_clients) <= rate).tolist())


def divided_noise(noise_multiplier: float) -> tuple[float, float]:
    """Divide the noise between the sum of the updates and the count of the unclipped clients.

    Both releases together cost as much privacy as one release with `noise_multiplier`:
    z^-2 = z_delta^-2 + (2 sigma_b)^-2. The sensitivity of the count is 1/2.

    Returns:
        z_delta, the noise multiplier of the sum, in units of the clip norm C; and sigma_b, the standard deviation of
        the noise on the count.
    """
    z_delta = noise_multiplier / math.sqrt(1 - COUNT_SHARE)
    return z_delta, noise_multiplier / (2 * math.sqrt(COUNT_SHARE))


def next_clip_norm(clip_norm: float, within: float, quantile: float) -> float:
    """Move the clip norm C towards a quantile of the clients' norms; `within` is the noisy share of the unclipped."""
    return clip_norm * math.exp(-CLIP_RATE * (within - quantile))
