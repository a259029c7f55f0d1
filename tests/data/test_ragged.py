"""A ragged sequence is the tuple of its arrays, in two objects."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.data.ragged import Ragged


@st.composite
def groupings(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """The owner of each example, and how many owners there are; some hold nothing."""
    num_owners = draw(st.integers(1, 7))
    return np.array(draw(st.lists(st.integers(0, num_owners - 1), max_size=23)), dtype=np.int64), num_owners


@given(groupings())
def test_a_grouping_is_the_tuple_of_what_each_owner_holds(grouping: tuple[np.ndarray, int]):
    owners, num_owners = grouping
    ragged = Ragged.grouped(owners, num_owners)
    arrays = tuple(np.flatnonzero(owners == owner) for owner in range(num_owners))
    for restored in (ragged, pickle.loads(pickle.dumps(ragged))):
        assert len(restored) == len(arrays)
        assert restored.sizes.tolist() == list(map(len, arrays))
        for mine, theirs in zip(restored, arrays, strict=True):
            assert mine.dtype == theirs.dtype == np.int64
            assert np.array_equal(mine, theirs)
    assert np.array_equal(np.concatenate(ragged), np.concatenate(arrays))


@given(groupings(), st.integers(-9, 9), st.integers(-9, 9))
def test_indices_and_slices_are_a_tuples(grouping: tuple[np.ndarray, int], start: int, stop: int):
    ragged = Ragged.grouped(*grouping)
    arrays = tuple(ragged)
    assert [rows.tolist() for rows in ragged[start:stop]] == [rows.tolist() for rows in arrays[start:stop]]
    if -len(arrays) <= start < len(arrays):
        assert np.array_equal(ragged[start], arrays[start])
    else:
        with pytest.raises(IndexError):
            ragged[start]


def test_an_array_is_a_view_and_not_a_copy():
    ragged = Ragged.grouped(np.array([1, 0, 1, 1]), 2)
    assert np.shares_memory(ragged[1], ragged.flat)
