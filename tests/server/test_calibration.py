"""The search for the least noise, with an epsilon of 1 / z in the accountant's place, and what is said without it."""

import sys
from typing import Any

import pytest

from fftmoe.errors import InputError
from fftmoe.server import accountant
from fftmoe.server.accountant import LEAST_NOISE, MOST_NOISE, PRECISION, Adjacency, calibrate, of_replaced_data

CLIENT = Adjacency.CLIENT_ADDED_OR_REMOVED


@pytest.fixture
def inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountant, "epsilon_of", lambda made, *_: 1 / made[0].noise_multiplier)


@pytest.mark.usefixtures("inverse")
@pytest.mark.parametrize("epsilon", [3.0, 2.0, 1.7, 1.0, 0.5, 0.3, 1e-3])
def test_the_least_noise_is_found_up_to_its_precision(epsilon: float):
    """Never less than suffices, and not even the precision more where a step of the search meets it exactly."""
    found = calibrate(1.0, epsilon, 0.01, 1, CLIENT)
    assert 1 / epsilon <= found <= (1 + 2 * PRECISION) / epsilon
    assert epsilon != 1.0 or found == 1.0


@pytest.mark.usefixtures("inverse")
def test_noise_has_a_least_and_a_most_value():
    for epsilon in (1 / LEAST_NOISE + 0.01, 100.0):
        assert calibrate(1.0, epsilon, 0.01, 1, CLIENT) == pytest.approx(LEAST_NOISE)
    found = calibrate(1.0, 1.5 / MOST_NOISE, 0.01, 1, CLIENT)
    assert found == pytest.approx(MOST_NOISE / 1.5, rel=2 * PRECISION)
    with pytest.raises(InputError, match=r"no noise gives 7 rounds an epsilon of .*; raise privacy\.epsilon"):
        calibrate(1.0, 0.9 / MOST_NOISE, 0.01, 7, CLIENT)


def test_two_steps_lead_from_one_clients_data_to_others():
    assert of_replaced_data(0.0, 1e-3) == (0.0, 2e-3)
    assert of_replaced_data(1.0, 1e-3) == pytest.approx((2.0, 1e-3 * 3.718281828))
    epsilon, delta = of_replaced_data(1e6, 1e-3)  # e to this power is not finite
    assert epsilon == 2e6
    assert 1.0 < delta < float("inf")


class Broken:
    """Finds `dp_accounting`, which cannot be imported."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.startswith("dp_accounting"):
            raise ImportError("a library of another version")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "dp_accounting"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
        with pytest.raises(InputError, match="privacy needs a library of another version to compute epsilon"):
            accountant.accounting()
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"privacy needs dp_accounting\.pld to compute epsilon; pip install"):
        accountant.accounting()
