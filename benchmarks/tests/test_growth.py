"""The benchmark of growth: its fits, on laws that are made up, and its plot."""

import importlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SIZES = (4, 8, 16, 32, 64)


@pytest.fixture
def growth(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("growth")


def noisy(times: Any, turns: int = 7) -> list[list[float]]:
    """Each of the times once a turn, up to 2 % off."""
    return (np.asarray(times)[:, None] * np.random.default_rng(1).uniform(0.98, 1.02, (len(times), turns))).tolist()


@pytest.mark.parametrize("law", [0.0, 0.4, 1.0, 1.7])
def test_a_power_law_is_found(growth: Any, law: float):
    exponent, factor = growth.exponent(SIZES, [0.3 * x**law for x in SIZES])
    assert exponent == pytest.approx(law, abs=1e-9)
    assert factor == pytest.approx(0.3)


def test_a_line_is_found_whatever_its_fixed_cost(growth: Any):
    for fixed in (0.0, 0.02, 5.0):
        assert growth.affine(SIZES, [fixed + 0.07 * x for x in SIZES]) == pytest.approx((fixed, 0.07), abs=1e-9)


def test_the_line_is_fitted_by_relative_errors(growth: Any):
    times = [0.5 + 0.1 * x for x in SIZES]
    times[-1] *= 1.1  # as large as all of the first in absolute terms
    fixed, each = growth.affine(SIZES, times)
    assert abs((fixed + each * SIZES[0]) / times[0] - 1) < 0.05
    plain_each, plain_fixed = np.polyfit(SIZES, times, 1)
    assert abs((plain_fixed + plain_each * SIZES[0]) / times[0] - 1) > 0.05


def test_a_fixed_cost_hides_growth_from_the_exponent_but_not_from_the_line(growth: Any):
    fit = growth.fitted(SIZES, [[1.0 + 0.01 * x] * 3 for x in SIZES])
    assert fit["power"]["exponent"] < 0.2
    assert fit["power"]["last_doubling"] > fit["power"]["exponent"]
    assert fit["affine"] == pytest.approx({"fixed": 1.0, "each": 0.01, "largest_error": 0.0}, abs=1e-9)


def test_the_interval_holds_the_law_and_grows_with_noise(growth: Any):
    exact = [0.2 * x**1.3 for x in SIZES]
    low, high = growth.interval(SIZES, noisy(exact))
    assert low < high
    assert low - 0.01 < 1.3 < high + 0.01
    assert growth.interval(SIZES, [[time] * 7 for time in exact]) == pytest.approx((1.3, 1.3))
    assert growth.interval(SIZES, noisy(exact)) == (low, high)  # the same turns are drawn each time


def test_what_slows_a_whole_turn_does_not_widen_the_interval(growth: Any):
    turns = np.array([1.0, 3.0, 1.5, 2.0, 1.2])
    runs = [(x**0.8 * turns).tolist() for x in SIZES]
    assert growth.interval(SIZES, runs) == pytest.approx((0.8, 0.8))


def test_every_setting_is_measured_once_and_differs_from_the_base_in_one_quantity(growth: Any):
    settings = growth.settings_of(growth.SIZES)
    base = growth.Setting()
    for setting in settings.values():
        assert sum(getattr(setting, name) != getattr(base, name) for name in growth.SIZES) <= 1
        assert setting.top_k <= setting.experts
    assert len(settings) == sum(map(len, growth.SIZES.values())) - 3  # the base belongs to all four


def test_fits_are_of_the_quantity_that_was_varied_and_the_plot_is_a_small_picture(growth: Any, tmp_path: Path):
    laws = {"experts": 0.1, "top_k": 0.5, "clients": 1.0, "examples": 1.5}
    base = growth.Setting()
    seconds = {
        name: [float(np.prod([(getattr(s, q) / getattr(base, q)) ** law for q, law in laws.items()]))] * 3
        for name, s in growth.settings_of(growth.SIZES).items()
    }
    found = growth.growth(growth.SIZES, seconds)
    for quantity, law in laws.items():
        assert found[quantity]["power"]["exponent"] == pytest.approx(law)
    assert growth.table(found).count("\n") == 1 + len(laws)
    path = tmp_path / "new" / "growth.png"
    growth.plot(found, path)
    picture = path.read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) <= 60 * 1024
    width, height = struct.unpack(">II", picture[16:24])
    assert width > height > 300
