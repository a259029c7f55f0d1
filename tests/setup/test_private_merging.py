"""How the rounds of a private run are merged, from the recipe and from what was spent; no model and no data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fftmoe.client.example_privacy import sampling_rate
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup import privacy
from fftmoe.setup.privacy import private_merging
from fftmoe.store.privacy_ledger import Spent
from site_recipes import BASE, MODES, PRIVATE, changed

SPENT = Spent(noise_multiplier=5.0, clip_norm=9.0)


def made(settings: Any, resumed: bool = False, trains: str = "experts", fewest: int = 17, **federation: Any) -> Any:
    """The merging of a recipe with this privacy; the parts that the fixture replaces show what they are given."""
    values = changed(BASE, {"privacy": settings, "federation": federation, **PRIVATE})
    experiment: Any = SimpleNamespace(
        recipe=parse_recipe(values, "test"),
        method=SimpleNamespace(capabilities=SimpleNamespace(trains=trains)),
        partition=SimpleNamespace(names=["a", "b"]),
        fewest_examples=fewest,
        num_clients=31,
        budgets=None,
        training=None,
    )
    initial: Any = None
    return private_merging(experiment, initial, Path("run"), resumed)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SimpleNamespace(read=lambda: SPENT)
    monkeypatch.setattr(privacy, "holders", lambda *given: {"head.weight": 31})
    monkeypatch.setattr(privacy, "PrivacyLedger", lambda folder: ledger)
    monkeypatch.setattr(privacy, "calibrate", lambda *given: 7.0)
    monkeypatch.setattr(privacy, "NoisySums", lambda method, rule, noise, everyone, spent, ledger: (rule, noise, spent))
    monkeypatch.setattr(privacy, "SumsOnly", lambda method, rule, cost: (rule, cost))
    monkeypatch.setattr(privacy, "AskedLedger", lambda folder: SimpleNamespace(read=lambda: ("asked before",)))
    monkeypatch.setattr(privacy, "ExampleCost", lambda rule, ledger, asked: (rule, asked))


def test_a_recipe_without_privacy_has_no_such_merging():
    assert made("off") is None


@pytest.mark.parametrize(
    ("trains", "kind"), [("experts", "fedavg"), ("low-rank", "per-expert"), ("head", "per-expert")]
)
def test_only_experts_are_summed_as_the_recipe_says(trains: str, kind: str):
    rule, cost = made({"min_contributors": 2}, trains=trains, aggregation="fedavg")
    assert (rule.min_contributors, rule.kind, cost) == (2, kind, None)
    assert rule.clip_norm == float("inf")
    assert made({"clip_norm": 3.0})[0].clip_norm == 3.0


@pytest.mark.parametrize(("mode", "needed"), [("sums", False), ("clients", True), ("examples", True)])
def test_a_missing_library_is_found_before_the_first_round(mode: str, needed: bool, monkeypatch: pytest.MonkeyPatch):
    def missing() -> None:
        raise InputError("dp-accounting is not installed")

    monkeypatch.setattr(privacy, "accounting", missing)
    if not needed:
        assert made(MODES[mode]["privacy"])
        return
    with pytest.raises(InputError, match="dp-accounting"):
        made(MODES[mode]["privacy"])


@pytest.mark.parametrize(("fewest", "rows"), [(17, 17), (1, 1), (0, 1)])
def test_examples_are_drawn_at_the_rate_of_the_client_with_the_fewest(fewest: int, rows: int):
    """A client without any is refused by what counts the cost, and not by a division."""
    _, (rule, _) = made(MODES["examples"]["privacy"], fewest=fewest)
    assert rule.release.sampling_rate == sampling_rate(BASE["federation"]["batch_size"], rows)
    assert (rule.fewest_examples, rule.release.times) == (fewest, BASE["federation"]["local_steps"])


@pytest.mark.parametrize(("resumed", "before"), [(False, ()), (True, ("asked before",))])
def test_a_resumed_run_counts_who_was_asked_before(resumed: bool, before: tuple[str, ...]):
    _, (_, asked) = made(MODES["examples"]["privacy"], resumed=resumed)
    assert asked == before


CLIENTS = {"clip_norm": 1.0, "delta": 1e-3}


@pytest.mark.parametrize(
    ("stated", "noise"),
    [({"epsilon": 3.0}, 7.0), ({"noise_multiplier": 2.0}, 2.0), ({"epsilon": 3.0, "noise_multiplier": 2.0}, 2.0)],
)
def test_noise_is_found_where_only_an_epsilon_is_stated(stated: dict[str, float], noise: float):
    *_, spent = made({**CLIENTS, **stated})
    assert spent == Spent(noise_multiplier=noise, clip_norm=1.0)


@pytest.mark.parametrize(
    ("stated", "noise", "clip_norm"),
    [
        ({"epsilon": 3.0}, 5.0, 1.0),  # what was found for all rounds stays
        ({"noise_multiplier": 2.0}, 2.0, 1.0),
        ({"noise_multiplier": 2.0, "clip_quantile": 0.5}, 2.0, 9.0),  # the bound follows the clients' norms
    ],
)
def test_a_run_goes_on_with_what_its_recipe_states_now(stated: dict[str, float], noise: float, clip_norm: float):
    *_, spent = made({**CLIENTS, **stated}, resumed=True)
    assert spent == Spent(noise_multiplier=noise, clip_norm=clip_norm)
