"""The cohort and the plan of a round are functions of the seed and the round."""

import dataclasses
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.methods.base import Method
from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Budget, RoundPlan, ServerState, Training
from fftmoe.server.apply import apply_round
from fftmoe.server.cohort import choose_cohort
from fftmoe.server.plan import plan_round

BUDGETS = {c: Budget("tier", 1, 2 + c % 3, (0, 1)) for c in range(11)}
TRAINING = Training(batch_size=7, learning_rate=0.01, head_learning_rate=0.5, local_steps=2)
STATE = ServerState(round=0, tensors={})


def planned(round: int = 1, seed: int = 3, cohort: tuple[int, ...] = (1, 4, 8)) -> RoundPlan:
    moe = FftMoe(budgets=BUDGETS, shape=ExpertShape(7, 3), num_experts=5, seed=seed)
    return plan_round(cast(Method, moe), STATE, round, cohort, BUDGETS, TRAINING, seed)


@given(st.integers(1, 50), st.data(), st.integers(0, 2**31), st.integers(1, 100))
@settings(deadline=None)
def test_a_cohort_is_distinct_ascending_and_of_the_requested_size(num_clients: int, data: Any, seed: int, round: int):
    size = data.draw(st.integers(1, num_clients))
    cohort = choose_cohort(num_clients, size, seed, round)
    assert len(cohort) == size
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(range(num_clients))
    assert cohort == choose_cohort(num_clients, size, seed, round)


def test_cohorts_change_from_round_to_round_and_seed_to_seed():
    cohorts = {choose_cohort(100, 10, seed, round) for seed in range(3) for round in range(1, 4)}
    assert len(cohorts) == 9


def test_every_client_is_chosen_about_as_often_as_any_other():
    counts = [0] * 10
    for round in range(1000):
        for client_id in choose_cohort(10, 3, 0, round):
            counts[client_id] += 1
    # 300 each, with a standard deviation of sqrt(1000 * .3 * .7) = 14.5; the seed is fixed, five of them are room.
    assert max(abs(count - 300) for count in counts) < 73


def test_a_plan_names_the_cohort_with_its_budgets_experts_and_training():
    plan = planned()
    assert [client.client_id for client in plan.clients] == [1, 4, 8]
    for client in plan.clients:
        assert client.round == plan.round == 1
        assert client.budget == BUDGETS[client.client_id]
        assert client.training == TRAINING
        assert {block: len(ids) for block, ids in client.experts.items()} == dict.fromkeys(
            (0, 1), client.budget.experts
        )


def test_seeds_of_clients_and_rounds_are_all_different():
    seeds = {client.seed for seed in (3, 4) for t in (1, 2, 3) for client in planned(t, seed).clients}
    assert len(seeds) == 2 * 3 * 3


def test_a_clients_plan_does_not_depend_on_the_rest_of_the_cohort_before_statistics():
    assert planned(cohort=(4,)).clients[0] == planned(cohort=(1, 4, 8)).clients[1]


def test_rounds_are_applied_in_order():
    moe = FftMoe(budgets=BUDGETS, shape=ExpertShape(7, 3), num_experts=5)
    with pytest.raises(AssertionError, match="round 2 does not follow 0"):
        apply_round(cast(Method, moe), STATE, dataclasses.replace(planned(), round=2), [])
