"""The attack on private training finds less than is stated, and finds every mechanism that is broken."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fftmoe.client import example_privacy
from fftmoe.rounds import private
from fftmoe.server.accountant import Adjacency
from fftmoe.server.apply import apply_round

TRIALS = 1_200
CLIENTS, EXAMPLES = "clients, all in every round", "examples, all in every step"


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module("audit")


@pytest.mark.parametrize("name", [CLIENTS, pytest.param(EXAMPLES, marks=pytest.mark.slow)])
def test_the_attack_proves_less_than_is_stated(audit: Any, name: str):
    """For examples it proves more than adding or removing one would cost: to state that would be wrong."""
    setting = audit.SETTINGS[name]
    proved = audit.lower_bound(setting, TRIALS)
    assert 0.5 < proved <= setting.stated()
    if name == EXAMPLES:
        assert proved > setting.stated(Adjacency.CLIENT_ADDED_OR_REMOVED)


def unclipped(tensors: Any, most: float) -> Any:
    return tensors


def only_if_someone_answers(method: Any, state: Any, plan: Any, updates: Any) -> Any:
    return apply_round(method, state, plan, updates)


@pytest.mark.parametrize(
    ("attacked", "module", "name", "broken"),
    [
        (EXAMPLES, example_privacy, "clipped", unclipped),
        (CLIENTS, private, "aggregate_round", only_if_someone_answers),
    ],
    ids=["gradients are not clipped", "a silent round releases nothing"],
)
def test_the_attack_finds_a_broken_mechanism(
    audit: Any, attacked: str, module: Any, name: str, broken: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, name, broken)
    setting = replace(audit.SETTINGS[attacked], noise=9.0)  # a few hundred trials cannot prove a large epsilon
    assert audit.lower_bound(setting, TRIALS // 2) > setting.stated()


def test_the_committed_results_are_of_these_settings_and_below_what_is_stated(audit: Any):
    found = json.loads((audit.RESULTS / "audit.json").read_text())
    assert found["confidence"] == audit.CONFIDENCE
    assert [row["attacked"] for row in found["rows"]] == [*audit.SETTINGS]
    for row, setting in zip(found["rows"], audit.SETTINGS.values(), strict=True):
        assert row["stated"] == pytest.approx(setting.stated(), rel=1e-6)
        assert 0 < row["proved"] <= row["stated"]
        assert replace(setting, noise=row["noise"], times=row["times"], delta=row["delta"]) == setting
