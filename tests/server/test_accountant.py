"""The accountant of differential privacy: epsilon, calibrated noise, the clip norm, and the size of a cohort."""

import math
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import NeighboringRelation, pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fftmoe.errors import InputError
from fftmoe.records import Release
from fftmoe.rng import numpy_generator
from fftmoe.server import accountant
from fftmoe.server.accountant import (
    LEAST_NOISE,
    Adjacency,
    calibrate,
    divided_noise,
    epsilon_of,
    next_clip_norm,
    poisson_cohort,
)

CLIENT = Adjacency.CLIENT_ADDED_OR_REMOVED


def spent(rate: float, noise: float, delta: float, times: int) -> float:
    return epsilon_of([Release(rate, noise, times)], delta, CLIENT)


def test_epsilon_agrees_with_published_values():
    """q = .04, z = 1.5, 2,250 steps, delta 1e-5: by RDP 7.32911 (Opacus) and 7.32933 (Google), by PLD 6.769."""
    q, z, steps, delta = 0.04, 1.5, 2250, 1e-5
    assert spent(q, z, delta, steps) == pytest.approx(6.769, abs=1e-3)
    assert of_accountant(pld.PLDAccountant(), q, z, steps, delta) == pytest.approx(6.769, abs=1e-3)
    assert of_accountant(rdp.RdpAccountant(), q, z, steps, delta) == pytest.approx(7.329, abs=1e-3)


def of_accountant(accountant: Any, q: float, z: float, steps: int, delta: float) -> float:
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)), steps)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("number", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_epsilon_is_below_what_rdp_proves_and_grows_with_the_rounds(number: int):
    """Checked in `number` configurations."""
    random = numpy_generator(number, "configurations")
    for _ in range(number):
        q, z = float(random.uniform(0.01, 0.5)), float(random.uniform(3, 9))
        steps, delta = int(random.integers(1, 500)), 10 ** -float(random.uniform(2, 7))
        found = [spent(q, z, delta, times) for times in (0, steps, 2 * steps)]
        assert found[0] == 0 < found[1] < found[2]
        assert found[1] <= of_accountant(rdp.RdpAccountant(orders=range(2, 64)), q, z, steps, delta)


def test_without_sampling_the_mechanism_is_gaussian():
    """z = 1 once: delta(epsilon) = Phi(1/2 - epsilon) - e^epsilon Phi(-1/2 - epsilon) (Balle and Wang, 2018)."""
    epsilon = spent(1.0, 1.0, 1e-5, 1)
    delta = stats.norm.cdf(0.5 - epsilon) - math.exp(epsilon) * stats.norm.cdf(-0.5 - epsilon)
    assert delta == pytest.approx(1e-5, rel=1e-3)


RELATIONS = {
    Adjacency.CLIENT_ADDED_OR_REMOVED: NeighboringRelation.ADD_OR_REMOVE_ONE,
    Adjacency.EXAMPLE_REPLACED: NeighboringRelation.REPLACE_ONE,
}
MADE = st.builds(Release, st.sampled_from([0.3, 1.0]), st.sampled_from([9.0, 17.0]), st.integers(0, 5))


@given(st.lists(MADE, max_size=4), st.sampled_from(Adjacency), st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_a_history_costs_what_dp_accounting_says(made: list[Release], adjacency: Adjacency, random: Any):
    """Every release counts with its own sampling rate and noise, in any order, and however they are grouped."""
    accountant = pld.PLDAccountant(RELATIONS[adjacency])
    for one in made:
        if one.times:
            event = dp_accounting.GaussianDpEvent(one.noise_multiplier)
            accountant.compose(dp_accounting.PoissonSampledDpEvent(one.sampling_rate, event), one.times)
    expected = accountant.get_epsilon(1e-4) if any(one.times for one in made) else 0.0
    assert epsilon_of(made, 1e-4, adjacency) == pytest.approx(expected, abs=1e-3)
    single = [replace(one, times=1) for one in made for _ in range(one.times)]
    random.shuffle(single)
    assert epsilon_of(single, 1e-4, adjacency) == epsilon_of(made, 1e-4, adjacency)


def test_a_replaced_example_moves_the_sum_twice_as_far():
    """Without sampling, replacement with noise 2 z is adding or removing with noise z."""
    replaced = epsilon_of([Release(1.0, 6.0, 7)], 1e-5, Adjacency.EXAMPLE_REPLACED)
    added = epsilon_of([Release(1.0, 3.0, 7)], 1e-5, Adjacency.CLIENT_ADDED_OR_REMOVED)
    assert replaced == pytest.approx(added, abs=1e-3)


@pytest.mark.parametrize("values", [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.5, 0.0, 1), (0.5, math.inf, 1), (math.nan, 1, 1)])
def test_a_release_has_possible_values(values: Any):
    with pytest.raises(ValueError, match="a release cannot have the values"):
        Release(*values)


@pytest.mark.parametrize(("rate", "epsilon", "rounds"), [(0.5, 0.5, 30), (1.0, 0.3, 1), (0.1, 0.2, 50)])
def test_calibrated_noise_is_the_least_within_the_budget(rate: float, epsilon: float, rounds: int):
    z = calibrate(rate, epsilon, 1e-4, rounds, CLIENT)
    assert spent(rate, z, 1e-4, rounds) <= epsilon
    assert spent(rate, z * 0.995, 1e-4, rounds) > epsilon


def test_calibration_finds_no_less_noise_than_a_recipe_may_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(accountant, "epsilon_of", lambda made, *_: 1 / made[0].noise_multiplier)
    assert calibrate(1.0, 100.0, 0.01, 1, CLIENT) == pytest.approx(LEAST_NOISE)
    assert calibrate(1.0, 1e-5, 0.01, 1, CLIENT) == pytest.approx(1e5, rel=2e-3)
    with pytest.raises(InputError, match=r"raise privacy\.epsilon"):
        calibrate(1.0, 1e-7, 0.01, 1, CLIENT)


def test_the_error_without_the_accountant_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.pld", None)
    with pytest.raises(InputError, match=r"pip install 'fftmoe\[dp\]'"):
        accountant.accounting()


def test_the_divided_noise_costs_as_much_as_undivided_noise():
    for z in (0.3, 1.0, 7.0):
        z_delta, z_count = divided_noise(z)
        # A client moves the sums by 1 in units of C, and the centred count by 1/2.
        assert 1 / z_delta**2 + (1 / 2) ** 2 / z_count**2 == pytest.approx(1 / z**2, rel=1e-12)


def test_the_clip_norm_converges_to_its_quantile():
    """The norms are uniform on (0, 3), so their quantile of 2/3 is 2."""
    random, norm = numpy_generator(0, "norms"), 0.1
    for _ in range(400):
        norm = next_clip_norm(norm, float((random.uniform(0, 3, 500) <= norm).mean()), 2 / 3)
    assert norm == pytest.approx(2, rel=0.05)


def test_the_size_of_a_poisson_cohort_is_binomial():
    """The sizes of 2,000 cohorts are binomial; empty and full cohorts occur."""
    sizes = np.array([len(poisson_cohort(50, 0.2)) for _ in range(2000)])
    assert abs(sizes.mean() - 10) < 6 * math.sqrt(8 / 2000)
    assert sizes.var() == pytest.approx(8, rel=0.25)
    assert poisson_cohort(5, 0.2, uniform=lambda n: np.full(n, 0.21)) == ()
    assert poisson_cohort(5, 1.0) == (0, 1, 2, 3, 4)
    assert poisson_cohort(3, 0.5, uniform=lambda n: np.array([0.6, 0.5, 0.1])) == (1, 2)
