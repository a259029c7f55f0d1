"""Tests laws of the robust means, of the units that they merge, and of whole rounds that use them.

The model has M experts of H x D in one block, and a head of C x D. f clients are malicious.
"""

import importlib
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fftmoe.config import parse_recipe
from fftmoe.config.robustness import RobustnessSection
from fftmoe.config.rules import AVERAGING
from fftmoe.engines.base import Fault
from fftmoe.errors import InputError
from fftmoe.head import HeadSums, bounded_total
from fftmoe.methods.merge.robust import ROBUST_AGGREGATORS, RobustMean, joint_tensors, min_contributors
from fftmoe.methods.merge.robust_means import MEANS, bounded_mean, median, multi_krum, shortened, trimmed_mean
from fftmoe.methods.merge.server_optimizer import ServerOptimizer
from fftmoe.records import ClientUpdate, Tensors, pack_plan, pack_update, unpack_update
from fftmoe.rng import generator, numpy_generator
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.setup.compose import compose
from fftmoe.setup.federation import expectations
from fftmoe.setup.run import run
from fftmoe.store import pack_state
from spoiling import KINDS as SPOILT
from tampering import Playback, Recorded, recipe_of, record

M, H, D, C = 5, 3, 7, 2
SHAPES = {
    "blocks.1.router": torch.Size((M, D)),
    "blocks.1.up": torch.Size((M, H, D)),
    "blocks.1.down": torch.Size((M, H, D)),
    "head.weight": torch.Size((C, D)),
    "head.bias": torch.Size((C,)),
}
UNITS = (("blocks.1.down", "blocks.1.up"), ("blocks.1.router",), ("head.bias", "head.weight"))
FAR = 1e6

seeds = st.integers(0, 2**31)
few = st.sampled_from([0, 1, 2, 3])
every_kind = pytest.mark.parametrize("kind", ROBUST_AGGREGATORS)
every_mean = pytest.mark.parametrize("kind", MEANS)


def update(client_id: int, experts: Sequence[int], seed: int, size: float = 1.0, **changes: Any) -> ClientUpdate:
    """Make a random update of these experts, whose numbers have the standard deviation `size`."""
    source = generator(seed, "update", client_id)
    tensors = {}
    for name, shape in SHAPES.items():
        rows = len(experts) if name.startswith("blocks.") else shape[0]
        tensors[name] = size * torch.randn(rows, *shape[1:], generator=source)
    shares = tuple(1 / len(experts) for _ in experts)
    return replace(ClientUpdate(1, client_id, 1 + client_id, tensors, {1: tuple(experts)}, {1: shares}), **changes)


def cohort(seed: int, num_clients: int) -> list[ClientUpdate]:
    """Make the updates of clients that trained random sets of experts, which may be empty."""
    random = numpy_generator(seed, "cohort")
    pools = [sorted(random.choice(M, int(random.integers(0, M + 1)), replace=False).tolist()) for _ in range(99)]
    return [update(n, pools[n], seed, size=float(random.uniform(0.5, 2))) for n in range(num_clients)]


def merged(updates: Sequence[ClientUpdate], kind: str, f: int, few: str = "bounded") -> tuple[Tensors, Tensors]:
    total = RobustMean(SHAPES, kind, f, few)
    for one in updates:
        total.add(one)
    return total.mean()


def changes_of(updates: Sequence[ClientUpdate], unit: Sequence[str], expert: int) -> list[Tensor]:
    """Return the change of a unit by each client that trained it, as one vector; the head ignores `expert`."""
    found = []
    for one in updates:
        if unit[0].startswith("head."):
            found.append(torch.cat([one.tensors[name].double().flatten() for name in unit]))
        elif expert in one.experts[1]:
            place = one.experts[1].index(expert)
            found.append(torch.cat([one.tensors[name][place].double().flatten() for name in unit]))
    return found


def result_of(deltas: Tensors, unit: Sequence[str], expert: int) -> Tensor:
    own = [deltas[name] if name.startswith("head.") else deltas[name][expert] for name in unit]
    return torch.cat([part.flatten() for part in own])


# The specification as loops


def loop_mean(kind: str, vectors: Sequence[Tensor], f: int) -> Tensor:
    n, size = len(vectors), len(vectors[0])
    if kind == "multi-krum":
        scores = []
        for i, own in enumerate(vectors):
            squared = sorted(
                sum((a - b) ** 2 for a, b in zip(own.tolist(), other.tolist(), strict=True))
                for j, other in enumerate(vectors)
                if j != i
            )
            scores.append((sum(squared[: n - f - 2]), i))
        chosen = [i for _, i in sorted(scores)[: n - f]]
        return sum((vectors[i] for i in sorted(chosen)), torch.zeros(size, dtype=torch.float64)) / len(chosen)
    result = []
    for p in range(size):
        values = sorted(float(vector[p]) for vector in vectors)
        result.append(statistics.median(values) if kind == "median" else statistics.fmean(values[f : n - f]))
    return torch.tensor(result, dtype=torch.float64)


def loop_bound(updates: Sequence[ClientUpdate], unit: Sequence[str]) -> list[float]:
    """Return the votes for the bound: each client's median length over its units."""
    votes = []
    for one in updates:
        norms = sorted(
            float(v.norm()) for m in range(M if unit[0][0] == "b" else 1) for v in changes_of([one], unit, m)
        )
        votes += [statistics.median_low(norms)] if norms else []
    return votes


def loop_merge(updates: Sequence[ClientUpdate], kind: str, f: int, few: str, unit: Sequence[str], m: int) -> Any:
    """Return the delta of a unit, or None if it does not change."""
    vectors, votes = changes_of(updates, unit, m), loop_bound(updates, unit)
    least = {"norm-bound": 2 * f + 1, "trimmed-mean": 2 * f + 1, "median": 2 * f + 1, "multi-krum": 2 * f + 3}[kind]
    if not vectors:
        return None
    if f == 0 or len(vectors) >= least:
        if kind != "norm-bound":
            return loop_mean(kind, vectors, f)
    elif few == "frozen":
        return None
    if len(votes) < 2 * f + 1:
        return None
    bound = statistics.median_low(votes)
    return sum(v * min(1.0, bound / float(v.norm())) for v in vectors) / max(len(vectors), 2 * f + 1)


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


# The means


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


# Units


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
def test_an_attacker_that_alone_holds_an_expert_moves_no_other_expert(kind: str, seed: int, size: float):
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


# Recipes


def robust(recipe_values: dict[str, Any], kind: str, cell: str = "fft-moe", **changes: Any) -> dict[str, Any]:
    """Make a recipe whose rounds have five clients, which multi-Krum needs for f = 1."""
    recipe = recipe_of(cell, recipe_values, **{"federation.clients_per_round": 5}, **changes)
    return recipe | {"robustness": {"aggregator": kind}}


@pytest.mark.parametrize("method", ["hetlora", "flora", "flexlora", "flame", "local-only", "centralized"])
def test_methods_that_do_not_average_are_refused(recipe_values: dict[str, Any], method: str):
    with pytest.raises(
        InputError, match=rf"method {method} does not aggregate by averaging.*use one of fft-moe, fedit"
    ):
        parse_recipe(robust(recipe_values, "median", method), "tiny")


@pytest.mark.parametrize("change", [{"federation.aggregation": "fedavg"}, {"federation.activation_power": 1.0}])
def test_other_weights_are_refused(recipe_values: dict[str, Any], change: dict[str, Any]):
    with pytest.raises(
        InputError, match=r"excludes .*aggregation=(fedavg|per-expert) with .*activation_power=[01]; leave"
    ):
        parse_recipe(robust(recipe_values, "median", **change), "tiny")


def test_a_cohort_that_is_too_small_is_refused_before_training(recipe_values: dict[str, Any]):
    recipe = robust(recipe_values, "multi-krum")
    recipe["federation"]["clients_per_round"] = 4
    with pytest.raises(InputError, match=r"multi-krum needs 5 updates to tolerate 1 malicious .*clients_per_round=4"):
        compose(parse_recipe(recipe, "tiny"))


@pytest.mark.parametrize(
    ("fraction", "cohort", "f"), [(0.0, 10, 0), (0.2, 10, 2), (0.2, 11, 3), (0.07, 100, 7), (0.49, 1, 1)]
)
def test_the_number_of_malicious_clients_is_rounded_up(fraction: float, cohort: int, f: int):
    assert RobustnessSection(aggregator="median", malicious_fraction=fraction).num_malicious(cohort) == f


def test_robustness_with_privacy_is_refused(recipe_values: dict[str, Any]):
    recipe = robust(recipe_values, "median") | {"privacy": {"min_contributors": 2}}
    with pytest.raises(InputError, match=r"privacy hides single updates and robustness compares them"):
        parse_recipe(recipe, "tiny")


def test_an_empty_section_is_an_error(recipe_values: dict[str, Any]):
    with pytest.raises(InputError, match=r"robustness: it is empty; say robustness.aggregator, or `robustness: off`"):
        parse_recipe({**recipe_values, "robustness": None}, "tiny")
    for off in (False, "off"):
        recipe = parse_recipe({**recipe_values, "robustness": off}, "tiny")
        assert recipe.robustness is None
        assert parse_recipe(recipe.model_dump(mode="json"), "tiny") == recipe
    recipe = parse_recipe(robust(recipe_values, "median"), "tiny")
    assert parse_recipe(recipe.model_dump(mode="json"), "tiny") == recipe


def test_half_of_the_clients_may_not_be_malicious(recipe_values: dict[str, Any]):
    recipe = robust(recipe_values, "median")
    recipe["robustness"]["malicious_fraction"] = 0.5
    with pytest.raises(InputError, match=r"robustness.malicious_fraction.*0.5"):
        parse_recipe(recipe, "tiny")


Record = Callable[[str], Recorded]


@pytest.fixture(scope="module")
def recorded(recipe_values: dict[str, Any]) -> Record:
    """`recorded("median")` returns the second round of a federation with this aggregator, recorded once."""
    done: dict[str, Recorded] = {}

    def make(kind: str) -> Recorded:
        if kind not in done:
            done[kind] = record(robust(recipe_values, kind), "train", rounds=2)
        return done[kind]

    return make


@every_kind
def test_a_rejected_update_leaves_no_trace(recorded: Record, kind: str):
    """The state has the same bits as without the answer."""
    known = recorded(kind)
    without, _ = known.play({known.victim: Fault(known.victim, "spare", "left out for a test")})
    everyone, _ = known.play({})
    assert pack_state(without) != pack_state(everyone)
    refused = 0
    for name, (spoil, _) in SPOILT.items():
        message = spoil(known.replies[known.victim])
        if message is not None:
            state, counted = known.play({known.victim: message})
            assert counted.faults == {"rejected": 1}, name
            assert pack_state(state) == pack_state(without), name
            refused += 1
    assert refused > 40


@every_kind
def test_a_large_change_that_passes_screening_moves_the_head_by_a_bounded_step(recorded: Record, kind: str):
    """One client multiplies its change by a million; the head moves less than twice the longest honest change."""
    known = recorded(kind)
    method, state = known.experiment.method, known.state
    updates = [unpack_update(known.replies[client]) for client in sorted(known.replies)]
    longest = max(float(one.tensors["head.weight"].norm()) for one in updates if one.client_id != known.victim)
    loud = [_times(one, FAR) if one.client_id == known.victim else one for one in updates]
    moved = method.aggregate(state, loud)[0].tensors["head.weight"] - state.tensors["head.weight"]
    assert float(moved.norm()) < 2 * longest
    everything = method.aggregate(state, loud)[0].tensors
    assert max(float((everything[name] - t).norm()) for name, t in state.tensors.items()) < 100


def _times(one: ClientUpdate, factor: float) -> ClientUpdate:
    return replace(one, tensors={name: factor * t for name, t in one.tensors.items()})


@pytest.mark.parametrize(("method", "kind"), [*zip(AVERAGING, itertools.cycle(ROBUST_AGGREGATORS))])
def test_whole_runs_finish_and_repeat_with_the_same_bytes(
    recipe_values: dict[str, Any], method: str, kind: str, tmp_path: Any
):
    recipe = robust(recipe_values, kind, method)
    tensors = []
    for name in ("one", "two"):
        folder = tmp_path / name
        assert run(parse_recipe(recipe, "tiny"), folder).summary["faults"] == {}
        tensors.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")})
    assert tensors[0] == tensors[1] != {}


# The benchmark's malicious clients


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("attacks_clients")


def received(known: Recorded, engine: Any) -> tuple[dict[int, ClientUpdate], Ledger]:
    """Return the updates that pass screening by client, and the ledger."""
    ledger, download = Ledger(), partial(known.experiment.method.download, known.state)
    updates = Exchange(engine, expectations(known.experiment), ledger).updates(known.plan, download)
    return {one.client_id: one for one in updates}, ledger


def test_all_attacks_except_nan_pass_screening(recorded: Record, clients: Any):
    known = recorded("median")
    for name, craft in clients.CRAFTS.items():
        found, ledger = received(known, clients.Colluding(Playback(known.replies), craft, {known.victim}, seed=1))
        assert ledger.faults == ({"rejected": 1} if name == "NaN" else {}), name
        sent = {client: pack_update(one) for client, one in found.items()}
        assert {c for c in known.replies if sent.get(c) != known.replies[c]} == {known.victim}, name
    _, ledger = received(known, clients.Colluding(Playback(known.replies), clients.CRAFTS["NaN"], {0}, 1, last=1))
    assert ledger.faults == {}  # this is round 2


def test_attacks_match_examples_computed_by_hand(clients: Any):
    """The honest changes are 1 and 3, with mean 2 and standard deviation 1."""
    own, honest = torch.tensor([4.0]), torch.tensor([[1.0], [3.0]])
    sent = {name: craft(own, honest, generator(0)).item() for name, craft in clients.CRAFTS.items()}
    by_hand = {"sign flip": -4.0, "scaled": -40.0, "ALIE": 0.5, "IPM": -1.0, "mimic": 1.0}
    assert {name: sent[name] for name in by_hand} == by_hand
    assert abs(sent["Gaussian"]) == pytest.approx(40)


def test_poisoned_clients_train_on_other_examples_until_the_last_attacked_round(recorded: Record, clients: Any):
    known = recorded("median")
    other = dict.fromkeys(known.replies, b"learnt from others")
    for last, bad in ((None, {known.victim}), (2, {known.victim}), (1, set())):
        engine = clients.Poisoned(Playback(known.replies), Playback(other), {known.victim}, last)
        groups = [[(client.client_id, pack_plan(client, {})) for client in known.plan.clients]]
        answers = {reply.client_id: reply.message for reply in engine.run_clients(groups)}
        assert answers.keys() == known.replies.keys()
        assert {client for client, message in answers.items() if message != known.replies[client]} == bad


def test_false_feature_statistics_pass_screening(recipe_values: dict[str, Any], clients: Any):
    """The tests below show that their effect is bounded."""
    known = record(robust(recipe_values, "median", "fft-moe-sums"), "sums", rounds=1)
    found, ledger = received(known, clients.LyingSums(Playback(known.replies), {known.victim}))
    assert ledger.faults == {}
    assert pack_update(found[known.victim]) != known.replies[known.victim]


@given(seed=seeds, num_clients=st.integers(2, 7), longer=st.sampled_from([1.0, 10.0, 1e9]))
@settings(max_examples=15)
def test_no_clients_feature_statistics_weigh_more_than_the_median(seed: int, num_clients: int, longer: float):
    source = generator(seed)
    labels = [
        torch.randint(0, C, (n,), generator=source)
        for n in torch.randint(1, 9, (num_clients,), generator=source).tolist()
    ]
    parts = [HeadSums.of(torch.randn(len(own), D, generator=source), own, C) for own in labels]
    parts[0] = HeadSums(longer * parts[0].gram, longer * parts[0].moment)
    total, sizes = bounded_total(parts), sorted(float(part.gram.trace()) for part in parts)
    middle = statistics.median_low(sizes)
    expected = sum(min(size, middle) for size in sizes)
    assert float(total.gram.trace()) == pytest.approx(expected)
    alike = [parts[-1]] * num_clients
    torch.testing.assert_close(bounded_total(alike).gram, HeadSums.total(alike).gram)
    torch.testing.assert_close(bounded_total(alike).moment, HeadSums.total(alike).moment)


def test_a_robust_run_bounds_the_feature_statistics_of_its_head(recipe_values: dict[str, Any], tmp_path: Path):
    tensors = []
    for name in ("plain", "robust"):
        recipe = robust(recipe_values, "norm-bound", "fft-moe-solved-head", **{"federation.learning_rate": 1e-12})
        recipe["head"] = {"kind": "closed-form", "update": "frozen"}
        if name == "plain":
            del recipe["robustness"]
        run(parse_recipe(recipe, "tiny"), tmp_path / name)
        path = next((tmp_path / name / "adapter").glob("*.safetensors"))
        tensors.append({key: t for key, t in load_file(path).items() if "classifier" in key or "head" in key})
    assert tensors[0].keys() == tensors[1].keys() != set()
    assert any(not torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])


def test_the_worst_case_is_the_attack_with_the_lowest_mean(clients: Any, tmp_path: Path):
    """The plain mean falls from 0.8 to 0.3 under one attack; the median costs 0.01, and 0.04 of 0.8 at worst."""
    attacks = importlib.import_module("attacks")
    figures = {("none", "plain"): 0.8, ("scaled", "plain"): 0.3, ("none", "median"): 0.79, ("IPM", "median"): 0.76}
    cells = [attacks.Cell("averaged", *key, "iid", seed) for key in figures for seed in (0, 1)]
    results = attacks.Results(tmp_path / "attacks.json")
    for cell in cells:
        results.add(cell, {"accuracy": figures[cell.attack, cell.aggregator] + 0.01 * cell.seed})
    again = attacks.Results(tmp_path / "attacks.json")
    lines = attacks.worst_table(attacks.accuracies(cells, again, "averaged")).splitlines()
    assert lines[2:] == [
        "| iid | plain | 0.805 | +0.000 | 0.305 (scaled) | +0.500 | missed |",
        "| iid | median | 0.795 | +0.010 | 0.765 (IPM) | +0.040 | met |",
    ]
    whole = list(attacks.cells_of(3))
    assert len({cell.name for cell in whole}) == len(whole)
    for cell in whole:
        attacks.recipe_of(cell, tmp_path, validation=False)
