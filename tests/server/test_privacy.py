"""What privacy promises: sums that no client moves by more than it may, noise on all of them, and an honest epsilon.

Sizes: M experts of H x D in one block, a shared expert of S x D, a head of C x D.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fftmoe.client.compress import compress
from fftmoe.client.conceal import concealed
from fftmoe.errors import InputError
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.methods.noise import normal, os_uniform
from fftmoe.methods.private import Noise, PrivateSum, clipped, holders, joint_norm
from fftmoe.records import (
    Budget,
    ClientPlan,
    ClientUpdate,
    Tensors,
    Training,
    pack_update,
    unpack_header,
    unpack_update,
)
from fftmoe.records.codec import decode
from fftmoe.records.names import block_of
from fftmoe.rng import generator, numpy_generator
from fftmoe.server import accountant
from fftmoe.server.accountant import LEAST_NOISE, Mechanism, calibrate, divided_noise, next_clip_norm, poisson_cohort
from fftmoe.store.privacy_ledger import PrivacyLedger, Spent

M, H, D, S, C = 7, 3, 5, 2, 3
SHAPES = {
    "blocks.1.router": torch.Size((M, D)),
    "blocks.1.up": torch.Size((M, H, D)),
    "blocks.1.down": torch.Size((M, H, D)),
    "shared.1.up": torch.Size((S, D)),
    "head.weight": torch.Size((C, D)),
}
CLIP = 0.5
TRAINING = Training(
    batch_size=3, learning_rate=0.01, head_learning_rate=0.5, local_steps=1, private=True, clip_norm=CLIP
)
UPLOADS = ("float32", "bfloat16", "int8")
seeds = st.integers(0, 2**31)


def nothing(*_: Any) -> None:
    """Stands in for a ledger."""


def no_noise(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def seeded(seed: int) -> Callable[[Sequence[int]], torch.Tensor]:
    source = generator(seed, "noise")
    return lambda shape: torch.randn(*shape, dtype=torch.float64, generator=source)


def counts(expert: float, other: float) -> Tensors:
    """The same number of contributors for every expert and for the other tensors."""
    return {
        name: torch.full((1 if block_of(name) is None else shape[0],), expert if "blocks" in name else other).double()
        for name, shape in SHAPES.items()
    }


def noise_of(std: float, draw: Any = no_noise, expected: Tensors | None = None, clients: float = 4.0) -> Noise:
    return Noise(std, counts(2.0, 4.0) if expected is None else expected, clients, nothing, draw)


def update(client_id: int, held: Sequence[int], seed: int, scale: float = 1.0) -> ClientUpdate:
    """Make a private update of these experts with about this norm."""
    source = generator(seed, "update", client_id)
    rows = {name: (len(held), *shape[1:]) if block_of(name) else tuple(shape) for name, shape in SHAPES.items()}
    tensors = {name: scale * torch.randn(shape, generator=source) for name, shape in rows.items()}
    return ClientUpdate(1, client_id, 1, tensors, {1: tuple(held)})


def cohort(seed: int, num_clients: int, scales: Sequence[float] = ()) -> list[ClientUpdate]:
    random = numpy_generator(seed, "held")
    held = [np.flatnonzero(random.random(M) < random.random()).tolist() for _ in range(num_clients)]
    return [
        update(n, own, seed, scale)
        for n, (own, scale) in enumerate(zip(held, scales or [1.0] * num_clients, strict=True))
    ]


def summed(updates: Sequence[ClientUpdate], **settings: Any) -> PrivateSum:
    total = PrivateSum(SHAPES, **{"min_contributors": 1, "clip_norm": CLIP, **settings})
    for one in updates:
        total.add(one)
    return total


# The accountant


def test_epsilon_agrees_with_published_values():
    """q = .04, z = 1.5, 2,250 steps, delta 1e-5: by RDP 7.32911 (Opacus) and 7.32933 (Google), by PLD 6.769."""
    q, z, steps, delta = 0.04, 1.5, 2250, 1e-5
    assert Mechanism(q, z, delta).epsilon(steps) == pytest.approx(6.769, abs=1e-3)
    assert of_accountant(pld.PLDAccountant(), q, z, steps, delta) == pytest.approx(6.769, abs=1e-3)
    assert of_accountant(rdp.RdpAccountant(), q, z, steps, delta) == pytest.approx(7.329, abs=1e-3)


def of_accountant(accountant: Any, q: float, z: float, steps: int, delta: float) -> float:
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(z)), steps)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("number", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_epsilon_is_below_what_rdp_proves_and_grows_with_the_rounds(number: int):
    """Checked in `number` configurations."""
    random = numpy_generator(number, "configurations")
    for _ in range(number):
        q, z = float(random.uniform(0.01, 0.5)), float(random.uniform(3, 9))
        steps, delta = int(random.integers(1, 500)), 10 ** -float(random.uniform(2, 7))
        mechanism = Mechanism(q, z, delta)
        found = [mechanism.epsilon(n) for n in (0, steps, 2 * steps)]
        assert found[0] == 0 < found[1] < found[2]
        assert found[1] <= of_accountant(rdp.RdpAccountant(orders=range(2, 64)), q, z, steps, delta)


def test_without_sampling_the_mechanism_is_gaussian():
    """z = 1 once: delta(epsilon) = Phi(1/2 - epsilon) - e^epsilon Phi(-1/2 - epsilon) (Balle and Wang, 2018)."""
    epsilon = Mechanism(1.0, 1.0, 1e-5).epsilon(1)
    delta = stats.norm.cdf(0.5 - epsilon) - math.exp(epsilon) * stats.norm.cdf(-0.5 - epsilon)
    assert delta == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize(("rate", "epsilon", "rounds"), [(0.5, 0.5, 30), (1.0, 0.3, 1), (0.1, 0.2, 50)])
def test_calibrated_noise_is_the_least_within_the_budget(rate: float, epsilon: float, rounds: int):
    z = calibrate(rate, epsilon, 1e-4, rounds)
    assert Mechanism(rate, z, 1e-4).epsilon(rounds) <= epsilon
    assert Mechanism(rate, z * 0.995, 1e-4).epsilon(rounds) > epsilon


def test_calibration_finds_no_less_noise_than_a_recipe_may_state(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Mechanism, "epsilon", lambda self, releases: 1 / self.noise_multiplier)
    assert calibrate(1.0, 100.0, 0.01, 1) == pytest.approx(LEAST_NOISE)
    assert calibrate(1.0, 1e-5, 0.01, 1) == pytest.approx(1e5, rel=2e-3)
    with pytest.raises(InputError, match=r"raise privacy\.epsilon"):
        calibrate(1.0, 1e-7, 0.01, 1)


def test_the_error_without_the_accountant_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.pld", None)
    with pytest.raises(InputError, match=r"pip install 'fftmoe\[dp\]'"):
        accountant.accounting()


def test_the_divided_noise_costs_as_much_as_undivided_noise():
    for z in (0.3, 1.0, 7.0):
        z_delta, z_count = divided_noise(z)
        # A client moves the sums by 1 in units of C, and the centred count by 1/2.
        assert 1 / z_delta**2 + (1 / 2) ** 2 / z_count**2 == pytest.approx(1 / z**2, rel=1e-12)


def test_the_clip_norm_converges_to_its_quantile():
    """The norms are uniform on (0, 3), so their quantile of 2/3 is 2."""
    random, norm = numpy_generator(0, "norms"), 0.1
    for _ in range(400):
        norm = next_clip_norm(norm, float((random.uniform(0, 3, 500) <= norm).mean()), 2 / 3)
    assert norm == pytest.approx(2, rel=0.05)


# Cohorts and noise


def test_the_size_of_a_poisson_cohort_is_binomial():
    """The sizes of 2,000 cohorts are binomial; empty and full cohorts occur."""
    sizes = np.array([len(poisson_cohort(50, 0.2)) for _ in range(2000)])
    assert abs(sizes.mean() - 10) < 6 * math.sqrt(8 / 2000)
    assert sizes.var() == pytest.approx(8, rel=0.25)
    assert poisson_cohort(5, 0.2, uniform=lambda n: np.full(n, 0.21)) == ()
    assert poisson_cohort(5, 1.0) == (0, 1, 2, 3, 4)
    assert poisson_cohort(3, 0.5, uniform=lambda n: np.array([0.6, 0.5, 0.1])) == (1, 2)


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


# Sums


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


def test_numbers_that_are_none_count_for_nothing():
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
        beside = (-1, *[1] * (delta.dim() - 1))
        torch.testing.assert_close(delta * divisor.view(beside), total_m * rows.view(beside), rtol=1e-12, atol=1e-15)
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


# What a client sends


HELD = (0, 2, 3, 6)
PLAN = ClientPlan(1, 4, 9, Budget("small", 2, len(HELD), (1,)), {1: HELD}, TRAINING)


def honest(trained: Sequence[int], seed: int, num_examples: int = 37) -> ClientUpdate:
    """Make the result of a client that trained some of its resident experts."""
    shares = tuple(float(s) for s in numpy_generator(seed, "shares").dirichlet([1.0] * len(trained))) if trained else ()
    return replace(
        update(4, trained, seed),
        num_examples=num_examples,
        shares={1: shares},
        preferences={1: tuple(reversed(HELD))},
        metrics={"loss": 0.123456789 * (seed + 1)},
    )


def sent(made: ClientUpdate, upload: str = "float32") -> bytes:
    return pack_update(compress(concealed(made, PLAN), {}, upload)[0])


@pytest.mark.parametrize("upload", UPLOADS)
@given(trained=st.sets(st.sampled_from(HELD)), seed=seeds, num_examples=st.integers(1, 10**6))
@settings(max_examples=30)
def test_a_message_has_the_same_length_and_header_whatever_was_routed_where(
    upload: str, trained: set[int], seed: int, num_examples: int
):
    one, other = sent(honest(sorted(trained), seed, num_examples), upload), sent(honest(HELD, 1), upload)
    assert len(one) == len(other)
    length = int.from_bytes(one[:8], "little")
    assert one[: 8 + length] == other[: 8 + length]
    header = unpack_header(one)
    assert header["num_examples"] == 1
    assert header["experts"] == {"1": [*HELD]}
    assert [header[name] for name in ("shares", "preferences", "metrics")] == [{}, {}, {}]


def test_untrained_experts_are_sent_as_zeros():
    made = honest((2, 6), 3)
    plan = replace(PLAN, training=replace(TRAINING, clip_norm=None))
    arrived = unpack_update(pack_update(concealed(made, plan)))
    for name in ("blocks.1.router", "blocks.1.up", "blocks.1.down"):
        assert torch.equal(arrived.tensors[name][[1, 3]], made.tensors[name])
        assert not arrived.tensors[name][[0, 2]].any()
    assert torch.equal(arrived.tensors["head.weight"], made.tensors["head.weight"])


@given(scale=st.floats(0, 1e6), seed=seeds)
@settings(max_examples=30)
def test_a_clients_update_respects_the_clip_norm(scale: float, seed: int):
    made = honest(HELD, seed)
    arrived = concealed(replace(made, tensors={n: scale * t for n, t in made.tensors.items()}), PLAN)
    assert joint_norm(arrived.tensors) <= CLIP * (1 + 1e-6)  # float32


def test_feedback_of_rounding_stays_with_the_client_and_is_bounded_again_by_the_server():
    feedback: Tensors = {}
    for seed in range(3):
        update, feedback = compress(concealed(honest(HELD[:2], seed), PLAN), feedback, "int8")
        assert all(name.startswith("feedback/") for name in feedback)
        decoded = replace(update, tensors=decode(update.tensors))
        assert joint_norm(summed([decoded]).sums) <= CLIP * (1 + 1e-12)


# An audit: what an adversary who knows everything but one client finds out (after Andrew et al., arXiv 2302.03098)

TRIALS = 20_000
PARTS = 16
AUDITED = {f"shared.{i}.up": torch.Size((1, 4)) for i in range(PARTS)}
Z, DELTA = 3.0, 1e-5


class Trials:
    """Draw the noise of all trials in one tensor, with the trials as first dimension; draw number `silent` is zero."""

    def __init__(self, silent: int = -1) -> None:
        self.calls, self.silent = 0, silent

    def __call__(self, shape: Sequence[int]) -> torch.Tensor:
        self.calls += 1
        drawn = normal((TRIALS, *shape))
        return torch.zeros_like(drawn) if (self.calls - 1) % PARTS == self.silent else drawn


class Heavy(PrivateSum):
    """A broken mechanism: the canary counts ten times."""

    def add(self, update: ClientUpdate) -> None:
        super().add(update)
        if update.client_id == 0:
            self.sums = {name: 10 * total for name, total in self.sums.items()}


class Separate(PrivateSum):
    """A broken mechanism: each tensor is clipped by itself."""

    def add(self, update: ClientUpdate) -> None:
        for name, tensor in update.tensors.items():
            self.last_client = -1
            super().add(replace(update, tensors={name: tensor}))


def audited(kind: type[PrivateSum], canary: Tensors, draw: Any) -> float:
    """Compute a lower bound of epsilon at DELTA, with 95 % confidence, from releases with and without the canary."""
    expected = {name: torch.ones(1, dtype=torch.float64) for name in AUDITED}
    others = [ClientUpdate(1, n, 1, {k: 0.01 * torch.ones(s) for k, s in AUDITED.items()}) for n in (1, 2)]
    direction = clipped(canary, 1.0)
    scores = []
    for present in (True, False):
        total = kind(AUDITED, 1, 1.0, noise=Noise(Z, expected, 1.0, nothing, draw))
        for one in [*([ClientUpdate(1, 0, 1, canary)] if present else []), *others]:
            total.add(one)
        parts = [(delta * direction[name]).sum((1, 2)) for name, delta in total.mean()[0].items()]
        scores.append(torch.stack(parts).sum(0).numpy())
    return max(bound(*scores), bound(-scores[1], -scores[0]))


def bound(present: np.ndarray, absent: np.ndarray) -> float:
    """Bound both rates of "the score is above t": one half of the trials gives t, the other Clopper-Pearson bounds."""
    half = TRIALS // 2
    levels = np.quantile(np.concatenate([present[:half], absent[:half]]), np.linspace(0.02, 0.98, 97))
    rates = [((s[:half, None] > levels).mean(0)) for s in (present, absent)]
    chosen = levels[np.argmax((rates[0] - DELTA) / (rates[1] + 1 / half))]
    hits, alarms = (int((s[half:] > chosen).sum()) for s in (present, absent))
    low = stats.beta.ppf(0.025, hits, half - hits + 1) if hits else 0.0
    high = stats.beta.ppf(0.975, alarms + 1, half - alarms)
    return math.log(max(low - DELTA, 1e-300) / high)


def canaries() -> dict[str, Tensors]:
    """Make an update far above the bound, in one tensor or in all."""
    spread = {name: torch.full(shape, 1e6) for name, shape in AUDITED.items()}
    return {"one": {n: t if n == "shared.0.up" else 0 * t for n, t in spread.items()}, "all": spread}


@pytest.mark.parametrize("canary", ["one", "all"])
def test_an_audit_finds_no_more_than_the_stated_epsilon(canary: str):
    claimed = Mechanism(1.0, Z, DELTA).epsilon(1)
    assert claimed == pytest.approx(1.3, abs=0.1)
    assert 0.05 < audited(PrivateSum, canaries()[canary], Trials()) <= claimed


@pytest.mark.parametrize(
    ("kind", "canary", "silent"), [(Heavy, "all", -1), (PrivateSum, "one", 0), (Separate, "all", -1)]
)
def test_an_audit_detects_a_broken_mechanism(kind: type[PrivateSum], canary: str, silent: int):
    """The broken mechanisms: a client of weight 10, no noise on one tensor, and tensors that are clipped separately."""
    claimed = Mechanism(1.0, Z, DELTA).epsilon(1)
    assert audited(kind, canaries()[canary], Trials(silent)) > claimed + 0.5


# The ledger


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    ledger = PrivacyLedger(tmp_path)
    spent = Spent(noise_multiplier=0.1 + 0.2, clip_norm=1 / 3, releases=7)
    ledger.write(spent)
    assert ledger.read() == spent


WHOLE = {"noise_multiplier": 1.0, "clip_norm": 1.0, "releases": 2}
DAMAGED = (
    *(None, "", "{}", "[]", "\x00", json.dumps(WHOLE)[:-2]),
    *(json.dumps({**WHOLE, **own}) for own in ({"releases": -1}, {"releases": 2.5}, {"clip_norm": math.nan}, {"a": 1})),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_ledger_is_an_error_and_not_an_empty_ledger(tmp_path: Path, text: str | None):
    (tmp_path / "checkpoints").mkdir()
    if text is not None:
        (tmp_path / "checkpoints" / "privacy.json").write_text(text)
    with pytest.raises(InputError, match="does not say what this run has spent"):
        PrivacyLedger(tmp_path).read()
