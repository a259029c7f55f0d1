"""What a release may be."""

import math

import pytest

from fftmoe.records import Release


@pytest.mark.parametrize("values", [(1.0, 1.0, 1), (1e-9, 1e-9, 0), (0.5, 1e300, 7)])
def test_possible_releases(values: tuple[float, float, int]):
    made = Release(*values)
    assert made.again(3).times == values[2] + 3
    assert made.repeated(3).times == values[2] * 3


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, 2.0, math.inf, math.nan])
def test_a_sampling_rate_is_a_probability_above_zero(rate: float):
    with pytest.raises(ValueError, match="a release cannot have the values"):
        Release(rate, 1.0)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
def test_noise_is_positive_and_finite(noise: float):
    with pytest.raises(ValueError, match="a release cannot have the values"):
        Release(0.5, noise)


def test_nothing_is_released_less_than_never():
    with pytest.raises(ValueError, match="a release cannot have the values"):
        Release(0.5, 1.0, -1)
