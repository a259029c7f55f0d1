"""Private sums: no client moves them by more than the clip norm, and every number of them gets noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.methods.noise import normal, os_uniform
from fftmoe.methods.private import Noise, PrivateSum, clipped, holders, joint_norm
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    Tensors,
)
from fftmoe.records.names import block_of
from fftmoe.rng import numpy_generator
from private_updates import (
    CLIP,
    SHAPES,
    TRAINING,
    C,
    D,
    M,
    cohort,
    counts,
    no_noise,
    noise_of,
    seeded,
    seeds,
    summed,
    update,
)


def test_noise_of_the_operating_system_is_standard_normal():
    """Each check fails by chance with probability 1e-9."""
    found = normal((200, 300)).flatten().numpy()
    assert found.dtype == np.float64
    assert stats.kstest(found, "norm").pvalue > 1e-9
    squares = float((found**2).sum())
    assert 1e-9 < stats.chi2.cdf(squares, found.size) < 1 - 1e-9
    assert len(np.unique(found)) == found.size
    one, other = os_uniform(1000), os_uniform(1000)
    assert (one > 0).all()
    assert (one <= 1).all()
    assert not np.intersect1d(one, other).size


def test_noise_is_half_the_sum_of_four_of_box_and_muller():
    uniform = numpy_generator(3, "uniform")
    drawn = [1 - uniform.random(4 * 6), 1 - uniform.random(4 * 6)]
    found = normal((2, 3), uniform=lambda count: drawn.pop(0) if count == 24 else np.empty(0))
    again = numpy_generator(3, "uniform")
    radius, angle = (1 - again.random(24)).reshape(4, 6), (1 - again.random(24)).reshape(4, 6)
    expected = (np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)).sum(0) / 2
    assert torch.equal(found, torch.from_numpy(expected).reshape(2, 3))
    assert normal((0, 3)).shape == (0, 3)


def test_noise_is_added_to_every_number_of_the_sums_and_to_nothing_else():
    expected = counts(2.0, 4.0)
    expected["blocks.1.up"][2] = expected["blocks.1.down"][2] = expected["blocks.1.router"][2] = 0.5
    for updates in ([], [update(0, (1, 2), 0)], cohort(3, 4)):
        total = summed(updates, noise=noise_of(0.7, expected=expected), min_contributors=2)
        still = total.mean()[0]
        total.noise = noise_of(0.7, draw=seeded(1), expected=expected)
        deltas, changes = total.mean()
        assert deltas.keys() == changes.keys() == SHAPES.keys()
        for name, delta in deltas.items():
            moved = (delta - still[name]) != 0
            frozen = block_of(name) is not None
            assert moved.flatten(1).all(1).tolist() == [not frozen or m != 2 for m in range(len(delta))]
            assert changes[name].tolist() == ([m != 2 for m in range(M)] if frozen else [True])
        if not updates:
            numbers = torch.cat(
                [
                    (deltas[n] * expected[n].view(-1, *[1] * (d.dim() - 1)))[changes[n].expand(len(d))].flatten()
                    for n, d in deltas.items()
                ]
            )
            assert stats.kstest(numbers.numpy() / 0.7, "norm").pvalue > 1e-6


def test_a_release_is_recorded_before_noise_is_drawn():
    order: list[str] = []

    def draw(shape: Sequence[int]) -> torch.Tensor:
        order.append("draw")
        return no_noise(shape)

    summed([], noise=Noise(1.0, counts(2, 2), 4.0, lambda: order.append("announce"), draw)).mean()
    assert order == ["announce", *["draw"] * len(SHAPES)]


@given(seed=seeds, scales=st.lists(st.floats(0, 1e12), min_size=1, max_size=5), left_out=st.integers(0, 4))
@settings(max_examples=150)
def test_one_client_moves_the_sums_by_at_most_the_clip_norm(seed: int, scales: list[float], left_out: int):
    """The bound is over all tensors together. The count of unclipped clients changes by at most one."""
    updates = cohort(seed, len(scales), scales)
    left_out %= len(scales)
    with_it, without = summed(updates), summed([one for one in updates if one.client_id != left_out])
    none = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    moved = {n: with_it.sums.get(n, none[n]) - without.sums.get(n, none[n]) for n in SHAPES}
    assert joint_norm(moved) <= CLIP * (1 + 1e-9)  # rounding of float64 sums
    assert 0 <= with_it.within - without.within <= 1


def test_an_update_that_is_not_finite_counts_as_zero():
    spoilt = update(0, (1, 2), 0)
    spoilt.tensors["head.weight"][0, 0] = float("nan")
    total = summed([spoilt, replace(update(1, (), 0), tensors={"head.weight": torch.full((C, D), float("inf"))})])
    assert all(not t.any() for t in total.sums.values())


@given(seed=seeds, num_clients=st.integers(0, 5), kind=st.sampled_from(["per-expert", "fedavg"]))
@settings(max_examples=40)
def test_with_noise_only_the_sums_depend_on_the_participants(seed: int, num_clients: int, kind: str):
    expected = counts(2.5, 4.0)
    expected["blocks.1.up"][3] = 0.1
    total = summed(cohort(seed, num_clients), noise=noise_of(1.0, expected=expected), min_contributors=2, kind=kind)
    deltas, changes = total.mean()
    for name, delta in deltas.items():
        rows = expected[name] >= 2
        divisor = expected[name] if kind == "per-expert" else torch.full_like(expected[name], 4.0)
        total_m = total.sums.get(name, torch.zeros(SHAPES[name], dtype=torch.float64))
        shape = (-1, *[1] * (delta.dim() - 1))
        torch.testing.assert_close(delta * divisor.view(shape), total_m * rows.view(shape), rtol=1e-12, atol=1e-15)
        assert torch.equal(changes[name], rows)


@pytest.mark.parametrize("cohorts", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_an_expert_with_too_few_contributors_is_never_released(cohorts: int):
    """Residents are random; a row is released exactly if enough clients of the cohort hold it."""
    random = numpy_generator(cohorts, "cohorts")
    shapes = {"blocks.0.up": torch.Size((M, 1)), "head.bias": torch.Size((2,))}
    released = 0
    for _ in range(cohorts):
        held = random.random((int(random.integers(0, 6)), M)) < 0.45
        total = PrivateSum(shapes, min_contributors=3)
        for n, own in enumerate(held):
            ids = np.flatnonzero(own)
            one = {"blocks.0.up": torch.ones(len(ids), 1), "head.bias": torch.ones(2)}
            total.add(ClientUpdate(1, n, 1, one, {0: tuple(ids.tolist())}))
        deltas, changes = total.mean()
        enough = held.sum(0) >= 3
        found = changes.get("blocks.0.up", torch.zeros(M, dtype=torch.bool)).numpy()
        assert (found == enough).all()
        assert ("head.bias" in deltas) == (len(held) >= 3)
        if enough.any():
            assert (deltas["blocks.0.up"][:, 0].numpy() == enough).all()
        released += int(enough.sum())
    assert released > cohorts / 10


@pytest.mark.parametrize("kind", ["per-expert", "fedavg"])
def test_without_noise_and_bounds_the_private_mean_is_the_plain_one(kind: str):
    """The clients have equal size and all take part; equal up to the rounding of float64 sums."""
    updates = cohort(7, 5)
    plain = WeightedSum(SHAPES, kind)
    for one in updates:
        plain.add(replace(one, num_examples=16, shares={1: (0.0,) * len(one.experts[1])}))
    expected, trained = plain.mean()
    held = {n: summed(updates).contributors[n] for n in SHAPES}
    for noise in (None, noise_of(0.0, draw=seeded(1), expected=held, clients=5.0)):
        deltas, changes = summed(updates, clip_norm=1e9, kind=kind, noise=noise).mean()
        for name in SHAPES:
            assert torch.equal(changes[name], trained[name])
            torch.testing.assert_close(deltas[name], expected[name], rtol=1e-12, atol=1e-12)


def test_all_tensors_are_clipped_together():
    tensors = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    assert joint_norm(tensors) == 5.0
    short = clipped(tensors, 1.0)
    torch.testing.assert_close(short, {"a": torch.tensor([0.6, 0.0]), "b": torch.tensor([[0.8]])})
    assert clipped(tensors, 5.0) == tensors


def test_holders_are_counted_from_budgets_and_residents():
    """There are two tiers; the small one does not adapt block 2."""

    @dataclass
    class Dealt:
        def assign(self, state: Any, cohort: Sequence[int]) -> dict[int, dict[int, tuple[int, ...]]]:
            return {c: {1: (c % M,), **({2: (0, 1)} if c >= 4 else {})} for c in cohort}

        def download(self, state: Any, plan: ClientPlan) -> Tensors:
            return {}

        def widest_update(self, plan: ClientPlan, download: Tensors) -> ClientUpdate:
            names = ["head.weight", *(f"{kind}.{b}.up" for b in plan.experts for kind in ("blocks", "shared"))]
            return ClientUpdate(1, plan.client_id, 1, dict.fromkeys(names, torch.zeros(1)))

    shapes = {"head.weight": (C, D), **{f"{k}.{b}.up": (M, D) for k in ("blocks", "shared") for b in (1, 2)}}
    state: Any = type("State", (), {"round": 0, "tensors": {n: torch.zeros(s) for n, s in shapes.items()}})
    budgets = {c: Budget("large" if c >= 4 else "small", 1, 1, (1, 2) if c >= 4 else (1,)) for c in range(10)}
    found = holders(Dealt(), state, budgets, TRAINING)  # type: ignore[arg-type]
    assert found["head.weight"].tolist() == [10]
    assert found["shared.1.up"].tolist() == [10]
    assert found["shared.2.up"].tolist() == [6]
    assert found["blocks.1.up"].tolist() == [2, 2, 2, 1, 1, 1, 1]
    assert found["blocks.2.up"].tolist() == [6, 6, 0, 0, 0, 0, 0]
