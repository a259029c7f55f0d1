"""Which difference of two values chance alone explains."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.report.chance import chance_margin, divided_by_chance
from fftmoe.tasks.share import wilson

unit = st.floats(0, 1)


@given(unit, unit, unit, unit)
def test_symmetric_intervals_give_the_root_of_the_squares_of_their_half_widths(
    value: float, half: float, other: float, its: float
):
    found = chance_margin(value, (value - half, value + half), other, (other - its, other + its))
    assert found == pytest.approx(math.hypot(half, its))


@given(st.integers(0, 40), st.integers(0, 40))
def test_it_does_not_depend_on_the_order(right: int, others: int):
    one, two = ((k / 40, wilson(k / 40, 40)) for k in (right, others))
    assert chance_margin(*one, *two) == chance_margin(*two, *one)


def test_only_the_sides_that_face_each_other_count():
    """Newcombe (1998), table II, case b of method 10: 9 of 10 against 3 of 10 differ by .6, of .1705 to .8090."""
    high, low = (0.9, wilson(0.9, 10)), (0.3, wilson(0.3, 10))
    assert 0.6 - chance_margin(*high, *low) == pytest.approx(0.1705, abs=5e-5)


def test_all_of_few_rows_right_beat_most_of_them_by_no_more_than_chance():
    """Of 20 rows, 16 right and then 20: Fisher's exact test says p = .11."""
    assert chance_margin(1.0, wilson(1.0, 20), 0.8, wilson(0.8, 20)) > 0.2


@given(st.integers(0, 6), st.integers(0, 5))
def test_clients_are_divided_by_chance_if_fair_coins_often_are(gain: int, lose: int):
    thrown = [abs(2 * sum(coins) - gain - lose) for coins in itertools.product((0, 1), repeat=gain + lose)]
    at_least_as_uneven = sum(by >= abs(gain - lose) for by in thrown) / len(thrown)
    assert divided_by_chance(gain, lose) == (at_least_as_uneven > 0.05)


@pytest.mark.parametrize(("gain", "lose", "is_chance"), [(7, 5, True), (5, 0, True), (6, 0, False), (14, 4, False)])
def test_few_clients_say_little(gain: int, lose: int, is_chance: bool):
    assert divided_by_chance(gain, lose) is divided_by_chance(lose, gain) is is_chance
