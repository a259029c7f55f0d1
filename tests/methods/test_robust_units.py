"""The units that a robust mean merges independently: modules of an expert, rows of a router, and the head."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.errors import InputError
from fftmoe.methods.merge.robust import RobustMean, joint_tensors, min_contributors
from fftmoe.methods.merge.robust_means import shortened
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.records import ClientUpdate
from fftmoe.rng import generator, numpy_generator
from robust_updates import (
    FAR,
    SHAPES,
    UNITS,
    M,
    changes_of,
    cohort,
    every_kind,
    few,
    loop_bound,
    merged,
    result_of,
    seeds,
    update,
)


def test_tensors_form_units_by_module():
    names = [
        *("blocks.1.router", "blocks.1.up", "blocks.1.down", "blocks.10.up", "shared.1.up", "shared.1.down"),
        *("shared.1.query.a", "shared.1.query.b", "head.weight", "head.bias", "lora.layer.0.q.A", "lora.layer.0.q.B"),
    ]
    assert joint_tensors(dict.fromkeys(names, torch.Size())) == [
        ["blocks.1.down", "blocks.1.up"],
        ["blocks.1.router"],
        ["blocks.10.up"],
        ["head.bias", "head.weight"],
        ["lora.layer.0.q.A", "lora.layer.0.q.B"],
        ["shared.1.down", "shared.1.up"],
        ["shared.1.query.a", "shared.1.query.b"],
    ]


@every_kind
@given(seed=seeds, num_clients=st.integers(1, 9), f=few)
@settings(max_examples=15)
def test_neither_the_order_nor_the_examples_of_clients_matter(kind: str, seed: int, num_clients: int, f: int):
    """Order and examples change no bit. New client ids change only the order of sums."""
    updates = cohort(seed, num_clients)
    expected, moved = merged(updates, kind, f)
    shuffled = [updates[n] for n in numpy_generator(seed).permutation(num_clients)]
    lying = [replace(one, num_examples=10**9 if one.client_id % 2 else 1) for one in shuffled]
    found, also_moved = merged(lying, kind, f)
    for name in expected:
        assert torch.equal(found[name], expected[name])
        assert torch.equal(also_moved[name], moved[name])
    renamed = [replace(one, client_id=n) for n, one in enumerate(shuffled)]
    for name, delta in merged(renamed, kind, f)[0].items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["trimmed-mean", "multi-krum"])
@given(seed=seeds, num_clients=st.integers(1, 9))
@settings(max_examples=15)
def test_without_malicious_clients_every_unit_is_a_plain_mean(kind: str, seed: int, num_clients: int):
    updates = cohort(seed, num_clients)
    deltas, _ = merged(updates, kind, 0)
    for unit in UNITS:
        for m in range(M if unit[0].startswith("blocks.") else 1):
            if vectors := changes_of(updates, unit, m):
                plain = torch.stack(vectors).mean(0)
                torch.testing.assert_close(result_of(deltas, unit, m), plain, rtol=1e-12, atol=1e-12)


@every_kind
@pytest.mark.parametrize("num_contributors", range(1, 6))
def test_an_expert_with_few_contributors_moves_by_a_bounded_step_or_not_at_all(kind: str, num_contributors: int):
    """With f = 2 of seven clients, expert 4 has at most five contributors, and the other experts have enough."""
    f, updates = 2, [update(n, (0, 1, 2, 3), 5) for n in range(7)]
    updates[:num_contributors] = [update(n, (0, 1, 2, 3, 4), 5, FAR if n < f else 1.0) for n in range(num_contributors)]
    deltas, trained = merged(updates, kind, f)
    _, frozen = merged(updates, kind, f, "frozen")
    unit = UNITS[0]
    vectors = torch.stack(changes_of(updates, unit, 4))
    bound = statistics.median_low(loop_bound(updates, unit))
    assert bound < FAR / 1e3
    assert trained["blocks.1.up"].all()
    assert frozen["blocks.1.up"].tolist() == [True] * 4 + [num_contributors >= min_contributors(kind, f)]
    if num_contributors < min_contributors(kind, f):
        step = shortened(vectors, bound).sum(0) / (2 * f + 1)
        torch.testing.assert_close(result_of(deltas, unit, 4), step)
        assert step.norm() <= num_contributors * bound / (2 * f + 1) * (1 + 1e-12)


@every_kind
def test_a_block_that_fewer_than_2f_plus_1_clients_trained_does_not_move(kind: str):
    """Otherwise the malicious clients could choose its bound."""
    f, updates = 2, [update(n, (0, 1) if n < 4 else (), 5) for n in range(7)]
    _, trained = merged(updates, kind, f)
    assert not trained["blocks.1.up"].any()
    assert not trained["blocks.1.router"].any()
    assert trained["head.weight"].all()
    _, trained = merged([*updates[:6], update(6, (3,), 5)], kind, f)
    assert trained["blocks.1.up"].tolist() == [True, True, False, True, False]


@every_kind
@given(seed=seeds, size=st.sampled_from([1.0, 30.0, 1e15]))
@settings(max_examples=10)
def test_an_attacker_that_is_the_only_holder_of_an_expert_moves_no_other_expert(kind: str, seed: int, size: float):
    """All honest changes have equal length, so that an additional vote does not move the bound."""
    f = 1
    honest = [_equally_long(update(n, (0, 1, 2), seed)) for n in range(6)]
    attacker = update(6, (4,), seed, size)
    attacker.tensors["blocks.1.router"].mul_(FAR)
    old = {name: torch.randn(shape, generator=generator(seed, name)) for name, shape in SHAPES.items()}
    without, _ = ServerOptimizer().apply(old, *merged(honest, kind, f), {})
    deltas, trained = merged([*honest, attacker], kind, f)
    new, _ = ServerOptimizer().apply(old, deltas, trained, {})
    for name in ("blocks.1.router", "blocks.1.up", "blocks.1.down"):
        assert torch.equal(new[name][:3], without[name][:3])
        assert torch.equal(new[name][3], old[name][3])
        assert not torch.equal(new[name][4], old[name][4])
    for own in UNITS[:2]:
        step = result_of(deltas, own, 4)
        assert step.norm() <= math.sqrt(len(step)) / (2 * f + 1) * (1 + 1e-9)


def _equally_long(one: ClientUpdate) -> ClientUpdate:
    """Replace every number by 1 or -1."""
    return replace(one, tensors={name: torch.where(t < 0, -1.0, 1.0) for name, t in one.tensors.items()})


@every_kind
def test_a_router_row_is_bounded_separately_from_its_expert(kind: str):
    """A large change of the router row does not affect the layers of its expert."""
    updates = [update(n, (0, 1), 3) for n in range(7)]
    before, _ = merged(updates, kind, 2)
    updates[3].tensors["blocks.1.router"].mul_(FAR)
    after, _ = merged(updates, kind, 2)
    assert torch.equal(after["blocks.1.up"], before["blocks.1.up"])
    longest = max(float(v.norm()) for n, one in enumerate(updates) if n != 3 for v in changes_of([one], UNITS[1], 0))
    assert after["blocks.1.router"][0].norm() <= longest


@every_kind
@given(seed=seeds, f=st.integers(1, 3))
@settings(max_examples=10)
def test_the_largest_values_that_pass_screening_give_bounded_results(kind: str, seed: int, f: int):
    updates = [update(n, tuple(range(M)), seed, 1e15 if n < f else 1.0) for n in range(2 * f + 3)]
    deltas, _ = merged(updates, kind, f)
    for unit in UNITS:
        honest = max(float(v.norm()) for v in changes_of(updates[f:], unit, 0))
        # Each number of a trimmed mean lies between honest numbers, which may come from different clients.
        assert result_of(deltas, unit, 0).norm() <= honest * math.sqrt(len(result_of(deltas, unit, 0)))


def test_a_second_update_of_a_client_is_an_error():
    total = RobustMean(SHAPES, "median", 1)
    total.add(update(3, (0,), 1))
    with pytest.raises(AssertionError, match="client 3 sent two updates"):
        total.add(update(3, (0,), 1))


def test_unknown_kinds_name_the_nearest():
    with pytest.raises(InputError, match=r"robustness.aggregator 'trimmed-men'; did you mean 'trimmed-mean'"):
        RobustMean(SHAPES, "trimmed-men", 1)
    with pytest.raises(InputError, match=r"robustness.few_contributors 'frozn'; did you mean 'frozen'"):
        RobustMean(SHAPES, "median", 1, "frozn")
