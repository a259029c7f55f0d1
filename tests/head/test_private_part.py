"""The private part of a head is the ridge regression of what the common head leaves, and its left-out values are those
of a fit without the item."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.head import RIDGES, PrivateFit
from fftmoe.rng import generator

F, C = 7, 3


def drawn(seed: int, num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = generator(seed, "items")
    return torch.randn(num_items, F, generator=source), torch.randn(num_items, C, generator=source)


def ridge_by_hand(features: np.ndarray, residuals: np.ndarray, rho: float) -> np.ndarray:
    x = np.concatenate([features, np.ones((len(features), 1))], 1)
    return np.linalg.solve(x.T @ x + rho * np.eye(F + 1), x.T @ residuals).T


@pytest.mark.parametrize("num_items", [1, 5, 23])  # fewer items than features, and more
@given(seed=st.integers(0, 2**31), ridge=st.sampled_from(RIDGES))
def test_a_part_is_the_ridge_regression_of_the_residuals(num_items: int, seed: int, ridge: float):
    features, residuals = drawn(seed, num_items)
    fit = PrivateFit.of(features, residuals)
    unit = (features.double().square().sum(1) + 1).mean()
    expected = ridge_by_hand(features.double().numpy(), residuals.double().numpy(), ridge * float(unit))
    assert fit.part(ridge).shape == (C, F + 1)
    np.testing.assert_allclose(fit.part(ridge), expected, rtol=1e-6, atol=1e-8)  # a condition of up to 1e5


@pytest.mark.parametrize("num_items", [5, 23])
@given(seed=st.integers(0, 2**31), ridge=st.sampled_from(RIDGES))
def test_what_is_left_out_is_a_fit_without_the_item(num_items: int, seed: int, ridge: float):
    features, residuals = drawn(seed, num_items)
    fit = PrivateFit.of(features, residuals)
    rho = ridge * float((features.double().square().sum(1) + 1).mean())
    found = fit.left_out(ridge)
    for item in range(num_items):
        others = np.arange(num_items) != item
        part = ridge_by_hand(features.double().numpy()[others], residuals.double().numpy()[others], rho)
        expected = part @ np.append(features[item].double().numpy(), 1)
        np.testing.assert_allclose(found[item], expected, rtol=1e-5, atol=1e-7)  # 1 - leverage may be 1e-4


def test_one_item_says_nothing_of_itself():
    features, residuals = drawn(3, 1)
    assert PrivateFit.of(features, residuals).left_out(RIDGES[0]).abs().max() < 1e-9


def test_equal_items_are_one_direction():
    """Their Gram matrix has rank one, and what rounding leaves of the others is no direction."""
    features, residuals = torch.ones(11, F), torch.arange(11 * C).reshape(11, C).float()
    fit = PrivateFit.of(features, residuals)
    assert fit.energies.shape == (1,)
    np.testing.assert_allclose(fit.part(RIDGES[-1]).sum(1), residuals.mean(0), rtol=1e-4)
