"""A run that will not fit into memory says so before it trains, with the keys to change."""

from hypothesis import given
from hypothesis import strategies as st

from fftmoe.cost.machine import memory_warning

MIB = st.floats(0, 2**24)


@given(MIB, MIB, MIB)
def test_it_is_said_where_and_only_where_more_is_needed_than_there_is(expected: float, held: float, free: float):
    said = memory_warning(expected, held, free)
    assert (said is None) == (expected - held <= free)


def test_the_message_names_both_sizes_and_the_keys():
    said = memory_warning(5 * 2**10, 2**10, 3 * 2**10)
    assert said is not None
    for words in ("5.0 GiB", "4.0 GiB", "engine.workers", "engine.micro_batch_size", "engine.checkpointing"):
        assert words in said
