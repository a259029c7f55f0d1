"""The rows that a client sets aside: how many, which, and that no other client changes them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data import FEWEST_DIVIDED, Ragged, held_out_places, num_held_out, with_held_out
from fftmoe.rng import numpy_generator

fractions = st.floats(0.001, 0.999)


@given(num_rows=st.integers(0, 400), fraction=fractions)
def test_a_client_with_enough_rows_sets_some_aside_and_keeps_some(num_rows: int, fraction: float):
    held = num_held_out(num_rows, fraction)
    if num_rows < FEWEST_DIVIDED:
        assert held == 0
    else:
        assert 1 <= held < num_rows
        assert abs(held - fraction * num_rows) <= 1


@pytest.mark.parametrize(("num_rows", "held"), [(4, 0), (5, 1), (14, 1), (15, 2), (101, 10)])
def test_a_tenth_of_the_rows(num_rows: int, held: int):
    assert num_held_out(num_rows, 0.1) == held


@given(num_rows=st.integers(5, 97), fraction=fractions, client=st.integers(0, 9), strata=st.integers(1, 6))
def test_every_label_has_its_share_up_to_one_row(num_rows: int, fraction: float, client: int, strata: int):
    labels = numpy_generator(client, "labels").integers(0, strata, num_rows)
    places = held_out_places(labels, fraction, client)
    assert len(places) == num_held_out(num_rows, fraction)
    assert (np.diff(places) > 0).all()
    of_label = np.bincount(labels, minlength=strata)
    expected = of_label * len(places) / num_rows
    assert (abs(np.bincount(labels[places], minlength=strata) - expected) < 1 + 1e-9).all()


def test_every_row_is_as_likely_as_any_other():
    labels = np.repeat([0, 1, 2], [1, 6, 4])
    draws = np.concatenate([held_out_places(labels, 0.3, client) for client in range(3000)])
    # 3 of 11 rows in each of 3,000 draws; four standard deviations of a count.
    assert abs(np.bincount(draws, minlength=11) - 3000 * 3 / 11).max() < 4 * (3000 * 3 / 11 * 8 / 11) ** 0.5


@given(sizes=st.lists(st.integers(0, 31), min_size=1, max_size=6), fraction=fractions)
def test_the_rows_of_all_clients_are_divided_and_none_is_lost(sizes: list[int], fraction: float):
    rows = Ragged.grouped(np.repeat(np.arange(len(sizes)), sizes), len(sizes))
    labels = numpy_generator(sum(sizes), "labels").integers(0, 3, sum(sizes))
    kept, held = with_held_out(rows, labels, fraction)
    for client, own in enumerate(rows):
        assert sorted([*kept[client], *held[client]]) == own.tolist()
        # A site draws the same from its own rows alone.
        assert (held[client] == own[held_out_places(labels[own], fraction, client)]).all()
