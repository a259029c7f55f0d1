"""Tests which experts clients hold: a balanced design first, then preferred experts and one slot to explore."""

import pickle
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.methods.residents import balanced_design, personal_residents
from fftmoe.records import Budget, Experts
from fftmoe.rng import numpy_generator

M = 7
BLOCKS = (1, 4)

held = st.lists(st.integers(1, M), min_size=1, max_size=11)
seeds = st.integers(0, 2**31)


def budgets_of(sizes: list[int], blocks: tuple[int, ...] = BLOCKS) -> dict[int, Budget]:
    return {client_id: Budget("tier", 1, size, blocks) for client_id, size in enumerate(sizes)}


def design_of(budgets: dict[int, Budget], seed: int) -> dict[int, Experts]:
    return dict(balanced_design(budgets, M, seed))


def design_one_by_one(budgets: Mapping[int, Budget], num_experts: int, seed: int) -> dict[int, Experts]:
    """Specify the balanced design: clients in turn take the experts with the fewest holders, with random ties."""
    design: dict[int, Experts] = {client_id: {} for client_id in sorted(budgets)}
    for block in sorted({b for budget in budgets.values() for b in budget.blocks}):
        random = numpy_generator(seed, "residents", block)
        holders = [0] * num_experts
        for client_id in design:
            if block in budgets[client_id].blocks:
                ties = random.random(num_experts)
                ranked = sorted(range(num_experts), key=lambda m: (holders[m], ties[m]))
                dealt = sorted(ranked[: budgets[client_id].experts])
                design[client_id][block] = tuple(dealt)
                for m in dealt:
                    holders[m] += 1
    return design


def assert_complete(residents: dict[int, Experts], budgets: dict[int, Budget]) -> None:
    """Assert that each client has the right number of distinct experts, ascending, in exactly its blocks."""
    assert list(residents) == sorted(budgets)
    for client_id, budget in budgets.items():
        assert set(residents[client_id]) == set(budget.blocks)
        for ids in residents[client_id].values():
            assert list(ids) == sorted(set(ids))
            assert len(ids) == budget.experts
            assert set(ids) <= set(range(M))


def holders(residents: dict[int, Experts], block: int) -> list[int]:
    counts = Counter(m for experts in residents.values() for m in experts.get(block, ()))
    return [counts[m] for m in range(M)]


@given(held, seeds)
@settings(deadline=None)
def test_numbers_of_holders_differ_by_at_most_one_in_a_balanced_design(sizes: list[int], seed: int):
    budgets = budgets_of(sizes)
    design = design_of(budgets, seed)
    assert_complete(design, budgets)
    for block in BLOCKS:
        assert max(holders(design, block)) - min(holders(design, block)) <= 1


@given(held, seeds)
@settings(deadline=None, max_examples=25)
def test_a_balanced_design_balances_each_block_over_the_clients_that_adapt_it(sizes: list[int], seed: int):
    budgets = {c: Budget("tier", 1, size, BLOCKS if c % 2 else BLOCKS[1:]) for c, size in enumerate(sizes)}
    design = design_of(budgets, seed)
    assert_complete(design, budgets)
    for block in BLOCKS:
        assert max(holders(design, block)) - min(holders(design, block)) <= 1


budgets = st.builds(
    Budget, st.just("tier"), st.just(1), st.integers(1, M), st.sampled_from([(1,), (4,), BLOCKS, (1, 4, 5)])
)


@given(st.dictionaries(st.integers(0, 10**9), budgets, max_size=11), seeds)
def test_a_balanced_design_matches_its_specification(budgets: dict[int, Budget], seed: int):
    design, expected = balanced_design(budgets, M, seed), design_one_by_one(budgets, M, seed)
    assert design == expected
    assert list(design) == list(expected)
    assert len(design) == len(expected)
    for nobody in (-1, 10**9 + 1):
        assert nobody not in design


def test_a_balanced_design_takes_one_bit_per_expert():
    budgets = budgets_of([1, 3, 5, 2] * 251)
    num_bytes = len(pickle.dumps(balanced_design(budgets, M, 0)))
    assert num_bytes < len(budgets) * (8 + len(BLOCKS)) + 1000  # an id of 8 bytes, and 7 bits per block


def test_a_balanced_design_is_a_function_of_the_seed():
    budgets = budgets_of([2, 3, 1, 2, 3])
    assert design_of(budgets, 5) == design_of(budgets, 5)
    assert design_of(budgets, 5) != design_of(budgets, 6)


def test_a_balanced_design_differs_from_block_to_block():
    design = design_of(budgets_of([3] * 5), 0)
    assert any(experts[1] != experts[4] for experts in design.values())


def rankings(num_clients: int, seed: int) -> dict[int, Experts]:
    """Rank all experts at random for every client, by dealing single slots from a balanced design."""
    orders = {}
    for client_id in range(num_clients):
        orders[client_id] = {}
        for block in BLOCKS:
            dealt = design_of(budgets_of([1] * M), seed + client_id)
            orders[client_id][block] = tuple(dealt[n][block][0] for n in range(M))
    return orders


@given(st.lists(st.integers(2, M - 1), min_size=1, max_size=7), seeds)
@settings(deadline=None)
def test_all_slots_but_one_hold_preferred_experts(sizes: list[int], seed: int):
    budgets, preferences = budgets_of(sizes), rankings(len(sizes), seed)
    residents = personal_residents(budgets, preferences, design_of(budgets, seed), M, explore=True)
    assert_complete(residents, budgets)
    for client_id, budget in budgets.items():
        for block in BLOCKS:
            assert set(preferences[client_id][block][: budget.experts - 1]) <= set(residents[client_id][block])


@given(held, seeds)
@settings(deadline=None, max_examples=25)
def test_without_exploration_a_client_holds_only_preferred_experts(sizes: list[int], seed: int):
    budgets, preferences = budgets_of(sizes), rankings(len(sizes), seed)
    residents = personal_residents(budgets, preferences, design_of(budgets, seed), M, explore=False)
    for client_id, budget in budgets.items():
        for block in BLOCKS:
            assert residents[client_id][block] == tuple(sorted(preferences[client_id][block][: budget.experts]))


def test_exploration_takes_the_expert_with_the_fewest_holders_in_the_cohort():
    # Both clients prefer 0 and 1. Expert 2 is the lowest expert without a holder, and after it has one, expert 3 is.
    budgets = budgets_of([3, 3], blocks=(1,))
    order: Experts = {1: (0, 1, 6, 5, 4, 3, 2)}
    residents = personal_residents(budgets, {0: order, 1: order}, {}, M, explore=True)
    assert residents == {0: {1: (0, 1, 2)}, 1: {1: (0, 1, 3)}}


@pytest.mark.parametrize("size", [1, M])
def test_a_client_with_one_slot_or_the_whole_pool_does_not_explore(size: int):
    budgets = budgets_of([size], blocks=(1,))
    order: Experts = {1: (5, 3, 1, 0, 2, 4, 6)}
    residents = personal_residents(budgets, {0: order}, {}, M, explore=True)
    assert residents[0][1] == tuple(sorted(order[1][:size]))


def test_a_client_without_statistics_takes_the_balanced_design():
    budgets = budgets_of([2, 3, 4])
    design = design_of(budgets, 1)
    known = rankings(3, 0)
    residents = personal_residents(budgets, {1: known[1]}, design, M, explore=True)
    assert residents[0] == design[0]
    assert residents[2] == design[2]
    assert residents[1] != design[1]


def test_slots_without_a_preferred_expert_go_to_the_experts_with_the_fewest_holders():
    budgets = budgets_of([4, 2], blocks=(1,))
    residents = personal_residents(budgets, {0: {1: (6, 2)}}, {1: {1: (0, 1)}}, M, explore=False)
    assert residents == {0: {1: (2, 3, 4, 6)}, 1: {1: (0, 1)}}


@given(st.lists(st.integers(2, M - 1), min_size=2, max_size=7), seeds)
@settings(deadline=None, max_examples=25)
def test_residents_do_not_depend_on_the_order_of_the_cohort(sizes: list[int], seed: int):
    budgets, preferences = budgets_of(sizes), rankings(len(sizes), seed)
    design = design_of(budgets, seed)
    backwards = dict(reversed(budgets.items()))
    assert personal_residents(budgets, preferences, design, M, explore=True) == personal_residents(
        backwards, preferences, design, M, explore=True
    )
