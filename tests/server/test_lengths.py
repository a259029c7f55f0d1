"""How long a change may be follows from the other changes; more than half of the senders must be honest, no more."""

from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from fftmoe.server.lengths import MOST_TIMES, longest_allowed, usual_length

HONEST = st.floats(1.0, MOST_TIMES, exclude_max=True)  # lengths of honest clients, which differ by less than the factor
ANYTHING = st.floats(0.0, 1e30)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """The lengths of a round's honest answers, and of fewer malicious ones."""
    honest = draw(st.lists(HONEST, min_size=2, max_size=13))
    others = draw(st.lists(ANYTHING, min_size=0 if len(honest) > 2 else 1, max_size=len(honest) - 1))
    return honest, others


@given(rounds(), st.lists(ANYTHING, max_size=5))
def test_a_minority_moves_the_bound_only_within_what_honest_clients_allow(
    lengths: tuple[list[float], list[float]], earlier: list[float]
):
    """Whatever it sends, and whatever earlier rounds were: no honest answer is refused, and none of a far larger one
    is allowed."""
    honest, others = lengths
    bound = longest_allowed([*others, *honest], earlier)
    if sum(length > 0 for length in [*others, *honest]) < 3:
        return  # see below
    assert bound is not None
    assert MOST_TIMES * min(honest) <= bound <= MOST_TIMES * max(honest)
    assert all(length <= bound for length in honest)


@given(st.lists(ANYTHING.filter(bool), min_size=3, max_size=17))
def test_the_bound_is_ten_times_the_lower_median(lengths: list[float]):
    below = sorted(lengths)[: (len(lengths) + 1) // 2]
    assert longest_allowed(lengths, ()) == MOST_TIMES * below[-1]
    assert below[-1] <= median(lengths)


@given(st.lists(ANYTHING, max_size=2), st.lists(HONEST, min_size=1, max_size=5))
def test_with_fewer_than_three_answers_the_last_rounds_count(few: list[float], earlier: list[float]):
    bound = longest_allowed(few, earlier)
    assert bound is not None
    assert MOST_TIMES * min(earlier) <= bound <= MOST_TIMES * max(earlier)
    assert longest_allowed(few, ()) is None


@given(HONEST, st.floats(0.0, 1.0))
def test_one_of_two_cannot_keep_the_other_out_by_sending_next_to_nothing(honest: float, tiny: float):
    usual = usual_length([tiny, honest])
    assert usual is not None
    assert usual == honest
    bound = longest_allowed([tiny, honest], [usual])
    assert bound is not None
    assert honest <= bound


def test_changes_of_nothing_are_not_compared():
    assert usual_length([0.0, 0.0]) is None
    assert longest_allowed([0.0] * 7, ()) is None
    assert longest_allowed([0.0] * 7 + [2.0, 3.0, 5.0], ()) == MOST_TIMES * 3.0
