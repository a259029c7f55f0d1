"""Robust runs: what a recipe may say, whole rounds and runs, and the malicious clients of the benchmark."""

import importlib
import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fftmoe.config import parse_recipe
from fftmoe.config.robustness import RobustnessSection
from fftmoe.config.rules import AVERAGING
from fftmoe.engines.base import Fault
from fftmoe.errors import InputError
from fftmoe.head import HeadSums, bounded_total
from fftmoe.methods.merge.robust import ROBUST_AGGREGATORS
from fftmoe.records import ClientUpdate, pack_plan, pack_update, unpack_update
from fftmoe.rng import generator
from fftmoe.rounds.exchange import Exchange
from fftmoe.rounds.ledger import Ledger
from fftmoe.setup.compose import compose
from fftmoe.setup.expected import expectations
from fftmoe.setup.run import run
from fftmoe.store import pack_state
from robust_updates import (
    FAR,
    C,
    D,
    every_kind,
    seeds,
)
from spoiling import KINDS as SPOILT
from tampering import Playback, Recorded, recipe_of, record


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
    with pytest.raises(
        InputError, match=r"multi-krum needs 5 updates, of which 1 may be malicious, .*clients_per_round=4"
    ):
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
    with pytest.raises(InputError, match=r"robustness: it is empty; write robustness.aggregator, or `robustness: off`"):
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
    complete, _ = known.play({})
    assert pack_state(without) != pack_state(complete)
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
