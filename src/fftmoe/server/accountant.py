"""Counts epsilon with privacy loss distributions, from the releases that were made (docs/math.md, Privacy)."""

import math
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fftmoe.errors import InputError
from fftmoe.methods.noise import Uniform, os_uniform
from fftmoe.records import Release
from fftmoe.shown import count_of

LEAST_NOISE = 0.3  # z; below it one round costs an epsilon of about ten, and the accountant needs very large grids
MOST_NOISE = 2.0**20
PRECISION = 1e-3  # relative error of a calibrated noise multiplier
GRID = 1e-4  # step of the grid of privacy losses; losses are rounded up to it, which can only raise epsilon
COUNT_SHARE = 0.04  # share of the privacy cost 1 / z^2 that pays for counting the unclipped clients
CLIP_RATE = 0.2  # learning rate of the clip norm (Andrew et al., arXiv 1905.03871, section 3)
MOST_EXPONENT = 700.0  # of a finite power of e
KEPT_DISTRIBUTIONS = 16  # privacy loss distributions of single releases; one has about a million numbers at most


class Adjacency(StrEnum):
    """Says which data sets a guarantee makes almost indistinguishable;
    the value is how it is stated next to an epsilon.
    """

    CLIENT_ADDED_OR_REMOVED = "one client takes part with its data, or never sends anything"
    EXAMPLE_REPLACED = "one example of a client is replaced by any other; the number of examples stays"


def epsilon_of(releases: Iterable[Release], delta: float, adjacency: Adjacency) -> float:
    """Return an upper bound of the epsilon that these releases cost together, in any order.

    Every release counts with its own sampling rate and noise. They may be chosen adaptively, each after the results of
    those before it.

    Args:
        delta: of the guarantee. adjacency: of which records it speaks.

    Raises:
        InputError: `dp-accounting` is not installed.
    """
    times: Counter[tuple[float, float]] = Counter()
    for release in releases:
        times[release.sampling_rate, release.noise_multiplier] += release.times
    return _epsilon(tuple(sorted((*key, number) for key, number in times.items() if number)), delta, adjacency)


def of_replaced_data(epsilon: float, delta: float) -> tuple[float, float]:
    """Return what a guarantee for a client that takes part or never does says of one whose data are replaced.

    From one client's data to none, and from none to other data, are two steps (group privacy):
    P(M(D)) <= e^epsilon P(M(0)) + delta <= e^(2 epsilon) P(M(D')) + (1 + e^epsilon) delta.

    Returns:
        epsilon and delta of one replaced client, and so also of one replaced example of it.
    """
    return 2 * epsilon, (1 + math.exp(min(epsilon, MOST_EXPONENT))) * delta


@lru_cache(maxsize=KEPT_DISTRIBUTIONS)
def _epsilon(made: tuple[tuple[float, float, int], ...], delta: float, adjacency: Adjacency) -> float:
    if not made:
        return 0.0
    (rate, noise, times), *others = made
    total = _one(rate, noise, adjacency).self_compose(times)
    for rate, noise, times in others:
        total = total.compose(_one(rate, noise, adjacency).self_compose(times))
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=KEPT_DISTRIBUTIONS)
def _one(sampling_rate: float, noise_multiplier: float, adjacency: Adjacency) -> Any:
    """Return the privacy loss distribution of one release, cached because it takes longer to make than to compose.

    A record that is replaced moves the sum by up to twice the norm of its part, from -1 to 1 at worst; one that is
    added or removed from 0 to 1.
    """
    distributions = accounting()
    from dp_accounting import NeighboringRelation

    replaced = adjacency is Adjacency.EXAMPLE_REPLACED
    return distributions.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=GRID,
        neighboring_relation=(NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.ADD_OR_REMOVE_ONE),
    )


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


def calibrate(sampling_rate: float, epsilon: float, delta: float, releases: int, adjacency: Adjacency) -> float:
    """Find the least noise multiplier, up to `PRECISION`, with which this many releases cost at most `epsilon`.

    Raises:
        InputError: no noise multiplier is large enough, or `dp-accounting` is not installed.
    """
    accounting()
    from scipy.optimize import brentq  # a dependency of dp_accounting

    @cache
    def excess(log_noise: float) -> float:
        return epsilon_of([Release(sampling_rate, math.exp(log_noise), releases)], delta, adjacency) - epsilon

    least, step, high = math.log(LEAST_NOISE), math.log(2), 0.0
    while excess(high) > 0:
        high += step
        if high > math.log(MOST_NOISE):
            raise InputError(
                f"no noise gives {count_of(releases, 'round')} an epsilon of {epsilon:g}; raise privacy.epsilon"
            )
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
