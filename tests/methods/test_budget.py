"""Tests how limits determine a budget: examples computed by hand, laws, and the messages about impossible budgets.

An expert in these tests has D = 7 and H = 3, so 2 * 3 * 7 + 7 = 49 parameters or 196 bytes.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.errors import InputError
from fftmoe.methods.budget import MIB, Budgets, ExpertShape, Limits, assign_tiers, resolve
from fftmoe.records import Budget

SHAPE = ExpertShape(dim=7, expert_dim=3)
BLOCKS = (2, 5)
M, TOKENS = 13, 1000


def budget(*, num_experts: int = M, tokens: int = TOKENS, shape: ExpertShape = SHAPE, **limits: Any) -> Budget:
    tier = Limits(name="tier", fraction=1.0, **limits)
    return resolve(tier, shape=shape, num_experts=num_experts, blocks=BLOCKS, tokens_per_round=tokens)


def test_an_expert_is_two_layers_and_a_router_row():
    assert SHAPE.parameters == 49
    # The router computes a product of length 7 for each of 5 experts, at 2 FLOPs per number. An expert computes two
    # products of 3 x 7. Forward and backward cost three passes.
    assert SHAPE.flops_per_token(top_k=2, experts=5) == 3 * (2 * 5 * 7 + 2 * 2 * (2 * 3 * 7))


def test_stated_numbers_stay_as_they_are():
    assert budget(top_k=2, experts=3) == Budget("tier", 2, 3, BLOCKS)
    assert budget(top_k=2, experts=3, blocks=(5,)) == Budget("tier", 2, 3, (5,))


def test_memory_holds_weights_gradients_and_two_moments_in_every_block():
    # Each additional expert takes 2 blocks * 196 bytes * 4 copies = 1568 bytes.
    for experts in (1, 3, 11):
        assert budget(top_k=1, memory_mib=experts * 1568 / MIB).experts == experts
        assert budget(top_k=1, memory_mib=((experts + 1) * 1568 - 1) / MIB).experts == experts


def test_uplink_holds_each_expert_once_in_every_block():
    # Each expert takes 2 blocks * 196 bytes = 392 bytes.
    assert budget(top_k=1, uplink_mib=5 * 392 / MIB).experts == 5
    assert budget(top_k=1, uplink_mib=(5 * 392 - 1) / MIB).experts == 4


def test_the_tighter_of_two_limits_decides():
    assert budget(top_k=1, uplink_mib=5 * 392 / MIB, memory_mib=3 * 1568 / MIB).experts == 3
    assert budget(top_k=1, uplink_mib=2 * 392 / MIB, memory_mib=3 * 1568 / MIB).experts == 2


def test_a_tier_with_fewer_blocks_affords_more_experts():
    assert budget(top_k=1, memory_mib=3 * 1568 / MIB, blocks=(5,)).experts == 6


def test_no_budget_holds_more_than_the_pool():
    assert budget(top_k=1, memory_mib=1000.0).experts == M


def test_compute_determines_how_many_experts_a_token_may_use():
    # With 4 experts the router takes 3 * 2 * 4 * 7 = 168 FLOPs per token, and an expert takes 3 * 84 = 252. There are
    # 1000 tokens and 2 blocks.
    for top_k in (1, 2, 4):
        gflops = 1000 * 2 * (168 + top_k * 252) / 1e9
        assert budget(experts=4, gflops=gflops * (1 + 1e-12)).top_k == top_k  # above the rounding of the division
    # For twice the tokens, the compute of 4 experts leaves (168 + 4 * 252) / 2 = 588 FLOPs per token, and
    # (588 - 168) / 252 = 1.7.
    assert budget(experts=4, gflops=1000 * 2 * (168 + 4 * 252) / 1e9, tokens=2 * TOKENS).top_k == 1


def test_a_deadline_limits_compute_by_the_machines_speed():
    gflops = 1000 * 2 * (168 + 2 * 252) / 1e9 * 1.01
    for deadline in (0.5, 20.0):
        tier = budget(experts=4, deadline_seconds=deadline, gflops_per_second=gflops / deadline)
        assert tier == budget(experts=4, gflops=gflops)
        assert tier.top_k == 2


def test_no_token_uses_more_experts_than_are_held():
    assert budget(experts=4, gflops=1000.0).top_k == 4
    assert budget(memory_mib=3 * 1568 / MIB, gflops=1000.0) == Budget("tier", 3, 3, BLOCKS)


limits_mib = st.floats(1568 / MIB, 1.0)


@given(limits_mib, limits_mib, st.floats(1.0, 10.0))
@settings(deadline=None)
def test_a_larger_memory_or_uplink_never_holds_fewer_experts(memory: float, uplink: float, factor: float):
    held = budget(top_k=1, memory_mib=memory, uplink_mib=uplink).experts
    assert budget(top_k=1, memory_mib=memory * factor, uplink_mib=uplink).experts >= held
    assert budget(top_k=1, memory_mib=memory, uplink_mib=uplink * factor).experts >= held


@given(st.integers(1, M), st.floats(2e-3, 1.0), st.floats(1.0, 10.0))
@settings(deadline=None)
def test_more_compute_never_uses_fewer_experts(experts: int, gflops: float, factor: float):
    assert budget(experts=experts, gflops=gflops * factor).top_k >= budget(experts=experts, gflops=gflops).top_k


@given(limits_mib, limits_mib, st.floats(4e-3, 1.0))
@settings(deadline=None)
def test_derived_budgets_respect_every_limit(memory: float, uplink: float, gflops: float):
    tier = budget(memory_mib=memory, uplink_mib=uplink, gflops=gflops)
    assert 1 <= tier.top_k <= tier.experts <= M
    assert tier.experts * 1568 / MIB <= memory
    assert tier.experts * 392 / MIB <= uplink
    used = TOKENS * len(BLOCKS) * SHAPE.flops_per_token(tier.top_k, tier.experts) / 1e9
    assert used <= gflops * (1 + 1e-12)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"top_k": 1, "memory_mib": 1567 / MIB}, ("'tier'", "cannot hold one expert", "0.001 MiB", "memory_mib=")),
        ({"top_k": 1, "uplink_mib": 391 / MIB}, ("'tier'", "cannot hold one expert", "uplink_mib=", "expert_dim")),
        ({"experts": 4, "gflops": 1e-6}, ("'tier'", "cannot compute one expert", "1e-06 GFLOPs", "1,000 tokens")),
        ({"top_k": 5, "experts": 4}, ("'tier'", "top_k=5", "experts=4", "lower top_k to 4")),
        ({"top_k": 1, "experts": 14}, ("'tier'", "experts=14", "num_experts=13", "lower experts to 13")),
        ({"top_k": 5, "memory_mib": 3 * 1568 / MIB}, ("top_k=5", "experts=3")),
    ],
)
def test_an_impossible_budget_names_the_tier_the_values_and_the_remedy(limits: dict[str, Any], words: tuple[str, ...]):
    with pytest.raises(InputError) as error:
        budget(**limits)
    assert all(word in str(error.value) for word in words), str(error.value)


fractions = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(lambda parts: [p / sum(parts) for p in parts])


@given(fractions, st.integers(80, 300), st.integers(0, 2**31))
@settings(deadline=None)
def test_tiers_are_largest_remainder_shares(parts: list[float], num_clients: int, seed: int):
    counts = np.bincount(assign_tiers(parts, num_clients, seed), minlength=len(parts))
    exact = np.array(parts) * num_clients
    assert counts.sum() == num_clients
    assert (np.abs(counts - exact) < 1).all()
    remainders, extra = exact - np.floor(exact), counts - np.floor(exact)
    # A tier that was rounded up has at least as large a remainder as a tier that was rounded down.
    if 0 < extra.sum() < len(parts):
        assert remainders[extra > 0].min() >= remainders[extra == 0].max() - 1e-9  # rounding of the products


@pytest.mark.parametrize(
    ("parts", "num_clients", "counts"),
    [([0.5, 0.3, 0.2], 20, [10, 6, 4]), ([0.5, 0.3, 0.2], 7, [4, 2, 1]), ([0.34, 0.33, 0.33], 5, [2, 2, 1])],
)
def test_tiers_match_examples_computed_by_hand(parts: Sequence[float], num_clients: int, counts: list[int]):
    # 7 clients: the shares are 3.5, 2.1 and 1.4, and the remaining client goes to 3.5. 5 clients: the shares are 1.7,
    # 1.65 and 1.65, and two clients remain.
    assert np.bincount(assign_tiers(parts, num_clients, 0)).tolist() == counts


def test_tiers_are_a_function_of_the_seed():
    one, two, other = (assign_tiers([0.5, 0.5], 40, seed) for seed in (3, 3, 4))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_fractions_must_sum_to_one():
    with pytest.raises(InputError, match=r"sum to 0\.9; make them sum to 1"):
        assign_tiers([0.5, 0.4], 20, 0)


def test_a_tier_without_clients_is_refused():
    with pytest.raises(InputError, match=r"no client: its fraction 0\.01 of 5 clients"):
        assign_tiers([0.99, 0.01], 5, 0)


TIERS = (Budget("small", 1, 2, BLOCKS), Budget("medium", 2, 3, BLOCKS), Budget("large", 3, 5, (5,)))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=23))
def test_budgets_equal_the_dict_of_each_clients_budget(numbers: list[int]):
    expected = {client_id: TIERS[number] for client_id, number in enumerate(numbers)}
    budgets = Budgets.of(TIERS, np.array(numbers))
    for mine in (budgets, pickle.loads(pickle.dumps(budgets))):
        assert mine == expected
        assert list(mine.items()) == list(expected.items())
        assert len(mine) == len(expected)
        assert all(mine[client_id] == budget for client_id, budget in expected.items())
    for tier in TIERS:
        assert budgets.members(tier).tolist() == [c for c, budget in expected.items() if budget == tier]
    for nobody in (-1, len(numbers), "0"):
        assert nobody not in budgets


def test_budgets_take_one_byte_for_each_client():
    budgets = Budgets.of(TIERS, assign_tiers([0.5, 0.3, 0.2], 1009, 0))
    assert budgets.numbers.nbytes == 1009
    many = [Budget(str(n), 1, 1, BLOCKS) for n in range(257)]
    assert Budgets.of(many, np.arange(257)) == dict(enumerate(many))


def test_a_deadline_leaves_out_the_first_blocks():
    """In a block of 4 experts, a token that uses one expert takes 168 + 252 FLOPs."""
    blocks = (1, 3, 5)

    def tier(flops: float, **limits: Any) -> Budget:
        timed = Limits("t", 1.0, deadline_seconds=2.0, gflops_per_second=flops * 1000 / 2 / 1e9 * 1.001, **limits)
        return resolve(timed, shape=SHAPE, num_experts=4, blocks=blocks, tokens_per_round=1000)

    assert tier(3 * (168 + 252), experts=4).blocks == (1, 3, 5)
    assert tier(2 * (168 + 252), experts=4) == Budget("t", 1, 4, (3, 5))
    assert tier(2 * (168 + 252), experts=4, blocks=(1, 3, 5, 7)[:1]).blocks == (1,)  # stated blocks are kept
    assert tier(3 * (168 + 2 * 252), experts=4, top_k=3).blocks == (3, 5)  # a stated top_k is computed in time
    assert tier(3 * (168 + 252)) == Budget("t", 1, 4, (1, 3, 5))  # all experts, because no other limit applies
    with pytest.raises(InputError, match="cannot compute one expert"):
        tier(100, experts=4)
