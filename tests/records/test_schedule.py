"""Learning rates over the rounds follow the formulas of docs/math.md."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.records import Schedule, Training

TRAINING = Training(batch_size=7, learning_rate=0.3, head_learning_rate=1.1, local_steps=5)
KINDS = ("constant", "linear", "cosine")
runs = st.integers(1, 400).flatmap(lambda rounds: st.tuples(st.just(rounds), st.integers(0, rounds - 1)))


@pytest.mark.parametrize(
    ("kind", "factors"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        ("cosine", [1 / 3, 2 / 3, *((1 + math.cos(math.pi * k / 5)) / 2 for k in range(5))]),
    ],
)
def test_the_factors_of_seven_rounds_with_two_of_warmup(kind: str, factors: list[float]):
    schedule = Schedule(kind, warmup=2, rounds=7)
    assert [schedule.factor(t) for t in range(1, 8)] == pytest.approx(factors, rel=1e-8)


@given(kind=st.sampled_from(KINDS), run=runs)
def test_rates_rise_to_the_full_rate_and_then_never_rise_again(kind: str, run: tuple[int, int]):
    rounds, warmup = run
    schedule = Schedule(kind, warmup, rounds)
    factors = [schedule.factor(t) for t in range(1, rounds + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert factors[warmup] == 1
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert kind == "constant" or rounds - warmup < 2 or factors[-1] < factors[warmup]


@given(kind=st.sampled_from(KINDS), run=runs)
def test_a_factor_does_not_depend_on_the_last_digits_of_a_cosine(kind: str, run: tuple[int, int]):
    rounds, warmup = run
    for t in (1, (rounds + 1) // 2, rounds):
        factor = Schedule(kind, warmup, rounds).factor(t)
        assert factor == float(f"{factor:.9g}")


def test_both_rates_are_multiplied_and_nothing_else_changes():
    halved = Schedule("constant", warmup=1, rounds=3).at(TRAINING, 1)
    assert halved == replace(TRAINING, learning_rate=0.15, head_learning_rate=0.55)


def test_a_constant_schedule_leaves_the_training_as_it_is():
    assert all(Schedule("constant", 0, 5).at(TRAINING, t) is TRAINING for t in range(1, 6))


@given(kind=st.sampled_from(KINDS), run=runs)
def test_training_outside_of_rounds_goes_through_the_factors_of_all_of_them(kind: str, run: tuple[int, int]):
    rounds, warmup = run
    schedule = Schedule(kind, warmup, rounds)
    found = schedule.over_run(TRAINING)
    if kind == "constant" and not warmup:
        assert found is TRAINING
    factors = [schedule.factor(t) for t in range(1, rounds + 1)]
    assert found == replace(TRAINING, rate_factors=found.rate_factors)
    assert list(found.rate_factors) in ([], factors)
    assert bool(found.rate_factors) == (set(factors) != {1})
