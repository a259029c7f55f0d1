"""Robust means: every result equals a specification in loops, and f malicious clients move it only within bounds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.methods.merge.robust_means import MEANS, bounded_mean, median, multi_krum, shortened, trimmed_mean
from fftmoe.rng import generator
from robust_updates import UNITS, D, M, cohort, every_kind, every_mean, few, loop_merge, merged, result_of, seeds


@every_kind
@given(seed=seeds, num_clients=st.integers(1, 9), f=few, few=st.sampled_from(["bounded", "frozen"]))
@settings(max_examples=20)
def test_every_unit_matches_the_specification(kind: str, seed: int, num_clients: int, f: int, few: str):
    if kind == "multi-krum" and f == 0 and num_clients < 3:
        return  # scores without neighbours are tested below
    updates = cohort(seed, num_clients)
    deltas, trained = merged(updates, kind, f, few)
    for unit in UNITS:
        for m in range(M if unit[0].startswith("blocks.") else 1):
            expected = loop_merge(updates, kind, f, few, unit, m)
            for name in unit:
                assert bool(trained[name][m]) == (expected is not None) if name in trained else expected is None
            if expected is not None:
                torch.testing.assert_close(result_of(deltas, unit, m), expected, rtol=1e-12, atol=1e-12)


@every_mean
@given(seed=seeds, num_clients=st.integers(1, 8))
@settings(max_examples=20)
def test_without_malicious_clients_a_robust_mean_is_the_plain_mean(kind: str, seed: int, num_clients: int):
    vectors = torch.randn(num_clients, D, generator=generator(seed), dtype=torch.float64)
    if kind != "median":
        torch.testing.assert_close(MEANS[kind][0](vectors, 0), vectors.mean(0), rtol=1e-12, atol=1e-15)


@every_mean
@given(seed=seeds, f=st.integers(1, 3), more=st.integers(0, 3), far=st.sampled_from([1e-3, 1.0, 30.0, 1e15]))
@settings(max_examples=30)
def test_f_clients_cannot_move_the_result_out_of_the_honest_range(kind: str, seed: int, f: int, more: int, far: float):
    """Trimmed means stay in the honest range of every number; Krum drops malicious changes that are far away."""
    source = generator(seed)
    num_honest = f + MEANS[kind][1] + more
    honest = torch.randn(num_honest, D, generator=source, dtype=torch.float64)
    bad = far * torch.randn(f, D, generator=source, dtype=torch.float64)
    order = torch.randperm(f + num_honest, generator=source)
    result = MEANS[kind][0](torch.cat([honest, bad])[order], f)
    if kind != "multi-krum":
        assert (result >= honest.amin(0) - 1e-12).all()
        assert (result <= honest.amax(0) + 1e-12).all()
    elif far > 1e9:
        torch.testing.assert_close(result, honest.mean(0))


def test_krum_by_hand():
    """For the numbers 0, 1, 3, 7, 100 and f = 1, a score sums the distances to the two nearest others.

    The scores are 1 + 9, 1 + 4, 4 + 9, 16 + 36 and 93² + 97². All but the last are chosen: (0 + 1 + 3 + 7) / 4.
    """
    numbers = torch.tensor([[100.0], [0.0], [3.0], [1.0], [7.0]], dtype=torch.float64)
    assert multi_krum(numbers, 1).item() == 2.75
    assert trimmed_mean(numbers, 1).item() == 11 / 3
    assert median(numbers).item() == 3.0
    assert median(numbers[:4]).item() == 2.0


def test_krum_sees_small_distances_between_large_vectors():
    """Three vectors are close to each other and 1e8 away from zero, where products would lose 1e16 · 1e-16 = 1."""
    vectors = torch.full((5, D), 1e8, dtype=torch.float64)
    vectors[:, 0] += torch.tensor([-0.6, 0.0, 1e-3, 2e-3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(multi_krum(vectors, 1)[0], vectors[1:, 0].mean(), rtol=0, atol=1e-7)


@given(seed=seeds, num_clients=st.integers(1, 9), f=st.integers(1, 4), size=st.sampled_from([0.0, 1e-3, 1.0, 1e15]))
@settings(max_examples=30)
def test_a_client_moves_a_bounded_mean_by_at_most_its_bound(seed: int, num_clients: int, f: int, size: float):
    source, least = generator(seed), 2 * f + 1
    deltas = size * torch.randn(num_clients, D, generator=source, dtype=torch.float64)
    bound = float(torch.rand((), generator=source))
    assert (shortened(deltas, bound).norm(dim=1) <= bound * (1 + 1e-12)).all()
    whole = bounded_mean(deltas, bound, least)
    own, bad = deltas.clone(), deltas.clone()
    own[0] = 0
    bad[:f] = 0
    assert (whole - bounded_mean(own, bound, least)).norm() <= bound / max(num_clients, least) * (1 + 1e-9)
    assert (whole - bounded_mean(bad, bound, least)).norm() < bound / 2
    assert torch.equal(shortened(deltas, float(deltas.norm(dim=1).max())), deltas)  # no longer than allowed
