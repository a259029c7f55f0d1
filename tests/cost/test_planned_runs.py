"""The forecast of `fftmoe plan` against the bytes and the closed-form heads of runs."""

from itertools import pairwise
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.methods.budget import ExpertShape
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.records import Budget, ClientPlan, ClientUpdate, Training, pack_update
from fftmoe.rounds import closed_form
from finished import timeless
from run_fixtures import PlanTiny, RunTiny

# One client a tier, so that the forecast of a tier is that of its only client, to the byte.
THREE_TIERS = [
    "partition.num_clients=3",
    "federation.clients_per_round=3",
    "partition.kind=iid",
    "partition.alpha=null",
    "evaluation.local_only=false",
    f"budgets=[{', '.join(f'{{name: t{e}, fraction: 0.3333333, top_k: 1, experts: {e}}}' for e in (1, 2, 5))}]",
]


def test_a_plan_equals_the_cost_of_the_first_round(run_tiny: RunTiny, plan_tiny: PlanTiny):
    planned = plan_tiny(*THREE_TIERS).values
    costs = planned["tiers"]
    assert [tier["budget"]["name"] for tier in costs] == ["t1", "t2", "t5"]
    first = run_tiny(*THREE_TIERS, "federation.rounds=1").rows[1]
    assert first["bytes_down"] == sum(tier["bytes_down"] for tier in costs)
    # At most: every resident expert may have been trained, and numbers may be as long as they get.
    assert 0.98 * sum(tier["bytes_up"] for tier in costs) <= first["bytes_up"] <= sum(t["bytes_up"] for t in costs)
    assert planned["num_examples"] == [38, 38, 37]
    assert {len(held["1"]) for held in planned["experts"].values()} == {1, 2, 5}


def test_no_round_uploads_more_than_planned(run_tiny: RunTiny, plan_tiny: PlanTiny):
    """Preferences grow over the rounds, because clients rank all experts that they know."""
    most = sum(tier["bytes_up"] for tier in plan_tiny(*THREE_TIERS).values["tiers"])
    rows = run_tiny(*THREE_TIERS, "federation.rounds=5").rows
    assert max(after["bytes_up"] - before["bytes_up"] for before, after in pairwise(rows)) <= most


@pytest.mark.parametrize("upload", ["bfloat16", "int8"])
def test_rounded_uploads_cost_what_was_planned_and_learn_the_same(run_tiny: RunTiny, plan_tiny: PlanTiny, upload: str):
    settings = (*THREE_TIERS, f"federation.upload={upload}", "federation.rounds=3")
    most = sum(tier["bytes_up"] for tier in plan_tiny(*settings).values["tiers"])
    rounded, workers = run_tiny(*settings), run_tiny(*settings, flags=("--workers", "2"))
    plain = run_tiny(*settings, "federation.upload=float32")
    spent = [after["bytes_up"] - before["bytes_up"] for before, after in pairwise(rounded.rows)]
    assert max(spent) <= most
    assert rounded.summary["bytes_up"] < plain.summary["bytes_up"]
    assert timeless(rounded.summary) == timeless(workers.summary)
    assert rounded.rows[-1]["train_loss"] == pytest.approx(plain.rows[-1]["train_loss"], rel=0.05)
    assert rounded.rows[-1]["train_loss"] != plain.rows[-1]["train_loss"]
    kept = [name for path in rounded.folder.glob("clients/*/*") for name in safetensors.torch.load(path.read_bytes())]
    assert any(name.startswith("feedback/") for name in kept)


@given(st.lists(st.floats(1e-9, 1, exclude_max=True), min_size=4, max_size=4), st.floats(1e-9, 1e9))
@settings(deadline=None)
def test_an_update_is_never_longer_than_planned(shares: list[float], loss: float):
    tensors = {"blocks.1.up": torch.zeros(4, 3, 7)}
    held, pool = {1: (0, 1, 2, 3)}, {1: tuple(range(13))}
    training = Training(batch_size=5, learning_rate=0.01, head_learning_rate=0.5, local_steps=1)
    plan = ClientPlan(12, 345, 6, Budget("t", 1, 4, (1,)), held, training)
    method = FftMoe({345: plan.budget}, ExpertShape(dim=7, expert_dim=3), num_experts=13)
    real = ClientUpdate(12, 345, 6789, tensors, held, {1: tuple(shares)}, pool, {"loss": loss})
    assert len(pack_update(real)) <= len(pack_update(method.widest_update(plan, tensors)))


def test_the_statistics_of_a_closed_form_head_are_planned_to_the_byte(run_tiny: RunTiny, plan_tiny: PlanTiny):
    settings = (
        "head={kind: closed-form, features: linear, update: frozen}",
        "evaluation.local_only=false",
        "federation.rounds=1",
    )
    one = plan_tiny("method=centralized", *settings).values["sums"]
    first = run_tiny("method=centralized", *settings).rows[0]
    assert (first["bytes_down"], first["bytes_up"]) == (one["bytes_first"], one["bytes_up"])
    seven = plan_tiny(*settings).values["sums"]
    first = run_tiny(*settings).rows[0]
    for key, planned_key in (("bytes_down", "bytes_first"), ("bytes_up", "bytes_up")):
        assert abs(first[key] - 7 * seven[planned_key]) < 7 * 32  # seeds and numbers of examples are of unlike lengths
    # In float32 the triangle of 21 x 21, and 21 x 3.
    assert 4 * (21 * 22 // 2 + 21 * 3 + 6 * 16) < seven["bytes_up"] < 4 * (21 * 22 // 2 + 21 * 3 + 6 * 16) + 512


def test_the_bytes_of_validation_are_planned(run_tiny: RunTiny, plan_tiny: PlanTiny):
    settings = ("data.validation=0.3", "federation.rounds=3", "evaluation.every=2", "evaluation.local_only=false")
    planned, first = plan_tiny(*settings).values["validation"], run_tiny(*settings).rows[0]
    assert (planned["times"], planned["every"]) == (3, 2)  # before the first round, after the second and the last
    asked = round(first["bytes_up"] / planned["bytes_up"])
    assert 1 <= asked <= 7
    for key, planned_key in (("bytes_down", "bytes_first"), ("bytes_up", "bytes_up")):
        assert abs(first[key] - asked * planned[planned_key]) < asked * 32
    assert "for validation every client that sets rows aside also gets" in plan_tiny(*settings).shown


@pytest.mark.parametrize("head", ["update: frozen", "update: trained, learning_rate: 0.01", "every: 1", "every: 2"])
@pytest.mark.parametrize("rounds", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_a_plan_counts_how_often_a_head_is_computed(
    run_tiny: RunTiny, plan_tiny: PlanTiny, monkeypatch: pytest.MonkeyPatch, head: str, rounds: int
):
    solve, solved = closed_form.solve_head, []

    def recorded(state: Any, *arguments: Any) -> Any:
        solved.append(state.round)
        return solve(state, *arguments)

    monkeypatch.setattr(closed_form, "solve_head", recorded)
    settings = (f"head={{kind: closed-form, {head}}}", f"federation.rounds={rounds}", "evaluation.local_only=false")
    sums = plan_tiny(*settings).values["sums"]
    run_tiny(*settings)
    assert sums["times"] == len(solved)
    assert sums["every"] == (int(head[-1]) if head.startswith("every") else None)
