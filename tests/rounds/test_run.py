"""Whole runs through the command line on a tiny backbone: what they leave, and what changes their results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fftmoe
from fftmoe.config import parse_recipe
from fftmoe.store import unpack_state
from finished import SUMMARY_KEYS, Finished, check_advice, check_same, timeless
from run_fixtures import RunTiny
from shared_fixtures import Cli


def test_a_run_leaves_its_folder_and_nothing_else(tiny_run: Finished):
    assert sorted(path.name for path in tiny_run.folder.iterdir()) == [
        "adapter",
        "bindings.json",
        "checkpoints",
        "clients",
        "config.yaml",
        "metrics.jsonl",
        "report-figures.csv",
        "report.html",
        "summary.json",
    ]
    adapter = {path.name for path in (tiny_run.folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "labels.json"} <= adapter
    assert sorted(path.name for path in (tiny_run.folder / "checkpoints").iterdir()) == [
        *(f"round-{round:06d}.{kind}" for round in (1, 2) for kind in ("json", "safetensors")),
        "rows.txt",
    ]
    assert not [path for path in tiny_run.folder.rglob("*") if path.name.endswith(".tmp")]


def test_a_run_keeps_its_resolved_recipe(tiny_run: Finished, recipe_values: dict[str, Any]):
    kept = parse_recipe(yaml.safe_load((tiny_run.folder / "config.yaml").read_text()), "config.yaml")
    assert kept == parse_recipe(recipe_values, "tiny.yaml")


def test_a_summary_has_every_promised_key(tiny_run: Finished):
    summary = tiny_run.summary
    assert set(summary) >= {*SUMMARY_KEYS, "expert_load_cv"}
    assert (summary["method"], summary["seed"], summary["num_clients"]) == ("fft-moe", 3, 7)
    assert summary["rounds_completed"] == 2
    assert set(summary["reweighted_accuracy"]) == {"mean", "worst_decile"}
    assert set(summary["accuracy_by_tier"]) == {"small", "large"}
    assert summary["accuracy"] == summary["accuracy_by_tier"]["large"]
    assert list(summary["accuracy_by_round"]) == ["0", "1", "2"]
    assert summary["accuracy_by_round"]["2"] == summary["accuracy"]
    assert (summary["clients_failed"], summary["faults"]) == (0, {})
    assert 0 < summary["reweighted_accuracy"]["worst_decile"] <= summary["reweighted_accuracy"]["mean"] < 1
    assert summary["seconds"] > 0
    assert summary["peak_rss_mib"] > 10


def test_parameters_are_counted_by_their_shapes(tiny_run: Finished):
    # 2 blocks of 5 experts of 2 * 4 * 20 and a router row of 20; a head of 3 * 20 and 3.
    assert tiny_run.summary["trainable_parameters"] == 2 * 5 * (2 * 4 * 20 + 20) + 63
    assert tiny_run.summary["trainable_parameters_by_tier"] == {"small": 2 * 2 * 180 + 63, "large": 2 * 5 * 180 + 63}


def test_metrics_have_a_line_per_round_from_round_0(tiny_run: Finished):
    rows = tiny_run.rows
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert {str(row["round"]): row["accuracy"] for row in rows} == tiny_run.summary["accuracy_by_round"]
    assert [row["bytes_down"] for row in rows] == sorted(row["bytes_down"] for row in rows)
    assert rows[0]["bytes_up"] == rows[0]["bytes_down"] == 0
    assert (rows[-1]["bytes_up"], rows[-1]["bytes_down"]) == (
        tiny_run.summary["bytes_up"],
        tiny_run.summary["bytes_down"],
    )


def test_a_checkpoint_holds_the_state_after_the_last_round(tiny_run: Finished):
    state = unpack_state((tiny_run.folder / "checkpoints" / "round-000002.safetensors").read_bytes())
    assert state.round == 2
    assert state.tensors["blocks.1.up"].shape == (5, 4, 20)
    for load in state.load.values():
        assert float(load.sum()) == pytest.approx(1.0)
    kept = {int(path.name) for path in (tiny_run.folder / "clients").iterdir()}
    assert kept == set(state.preferences)  # each client that trained has sent its preferences and kept its affinities
    assert 5 <= len(kept) <= 7


def test_the_command_line_shows_the_outcome_and_the_next_commands(tiny_run: Finished):
    assert f"accuracy {tiny_run.summary['accuracy']:.3f} on the whole test set" in tiny_run.outcome.out
    assert "round   1  loss" in tiny_run.outcome.out
    check_advice(tiny_run.outcome.out, tiny_run.folder)
    assert f"fftmoe.predict({str(tiny_run.folder)!r}, [...])" in tiny_run.outcome.out
    assert tiny_run.outcome.err == ""


def test_the_page_shows_the_outcome_and_loads_nothing(tiny_run: Finished):
    page = (tiny_run.folder / "report.html").read_text(encoding="utf-8")
    assert f"{tiny_run.summary['accuracy']:.3f}" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//|@import""", page)
    assert "<script" not in page


def test_the_same_seed_gives_the_same_run_and_another_seed_another(run_tiny: RunTiny, tiny_run: Finished):
    again, other = run_tiny(), run_tiny("seed=4")
    assert timeless(again.summary) == timeless(tiny_run.summary)
    assert timeless(again.rows) == timeless(tiny_run.rows)
    assert again.rows[1]["train_loss"] != other.rows[1]["train_loss"]
    for name in ("adapter/adapter_model.safetensors", "checkpoints/round-000002.safetensors"):
        assert (again.folder / name).read_bytes() == (tiny_run.folder / name).read_bytes()
        assert (again.folder / name).read_bytes() != (other.folder / name).read_bytes()


@pytest.mark.one_rounding("worker processes")
def test_one_worker_and_two_give_the_same_bytes(run_tiny: RunTiny):
    """Compare two worker processes, each with its own model, with this process and its single model."""
    settings = (
        "adapter.router=shared+personal",
        "federation.server_optimizer=adam",
        "federation.server_learning_rate=0.1",
    )
    one, two = run_tiny(*settings), run_tiny(*settings, flags=("--workers", "2"))
    assert check_same(one, two) > 5


def test_local_training_does_not_depend_on_the_federation(run_tiny: RunTiny, tiny_run: Finished):
    other = run_tiny("federation.server_learning_rate=0.25", "federation.server_optimizer=momentum")
    assert other.rows[1]["accuracy"] != tiny_run.rows[2]["accuracy"]
    for key in ("local_only_accuracy", "reweighted_local_only_accuracy"):
        assert other.summary[key] == tiny_run.summary[key]


def test_evaluating_less_often_does_not_change_training(run_tiny: RunTiny, tiny_run: Finished):
    rarely = run_tiny("evaluation.every=5", "evaluation.max_examples=7", "evaluation.local_only=false")
    assert [row["accuracy"] is None for row in rarely.rows] == [False, True, False]
    assert rarely.summary["accuracy"] == tiny_run.summary["accuracy"]
    assert not {"local_only_accuracy", "reweighted_local_only_accuracy"} & rarely.summary.keys()
    assert rarely.adapter == tiny_run.adapter


def test_a_run_with_tensorboard_leaves_its_events(run_tiny: RunTiny):
    folder = run_tiny("trackers=[tensorboard]", "evaluation.local_only=false").folder / "trackers"
    assert [path.name for path in folder.iterdir() if path.name.startswith("events.")]


@pytest.mark.parametrize("how", ["natural", "blocks", "epochs", "limits", "native"])
def test_other_kinds_of_run_finish(run_tiny: RunTiny, recipe_values: dict[str, Any], how: str):
    overrides = {
        "natural": ["partition={kind: natural, by: author}", "federation.clients_per_round=4"],
        "blocks": ["budgets.small.blocks=last-1", "adapter.blocks=all"],
        "epochs": ["federation.local_steps=null", "federation.local_epochs=1"],
        "limits": [],
        "native": ["backbone.pooling=native", "head={kind: averaged, learning_rate: 0.5, optimizer: adamw}"],
    }[how]
    if how == "limits":
        # 2 blocks * 180 parameters * 4 bytes * 4 copies = 5760 bytes an expert; three fit. Plenty of compute.
        tier = f"{{name: small, fraction: 0.6, memory_mib: {3.5 * 5760 / 2**20}, gflops: 5}}"
        overrides = [f"budgets=[{tier}, {{name: large, fraction: 0.4, top_k: 2, experts: 5}}]"]
    finished = run_tiny(*overrides, "evaluation.local_only=false")
    assert finished.summary["rounds_completed"] == 2
    if how == "limits":
        assert finished.summary["trainable_parameters_by_tier"]["small"] == 2 * 3 * 180 + 63


def test_the_python_call_returns_the_contents_of_the_folder(recipe_file: Path, tiny_run: Finished, tmp_path: Path):
    result = fftmoe.run(recipe_file, output=tmp_path / "run", overrides=["evaluation.local_only=false"])
    assert result.folder == tmp_path / "run"
    assert result.summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result.summary["accuracy"] == tiny_run.summary["accuracy"]


def test_a_run_goes_to_runs_and_its_name_by_default(
    cli: Cli, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert cli("run", recipe_file, "--set", "evaluation.local_only=false").status == 0
    assert (tmp_path / "runs" / "tiny" / "summary.json").is_file()


def test_a_run_saves_the_moving_average_and_trains_without_it(run_tiny: RunTiny):
    settings = ("evaluation.local_only=false", "federation.rounds=2")
    plain, averaged = (run_tiny(*settings, f"federation.ema_decay={decay}") for decay in (0, 0.5))
    # The first round is its own average, and the second trains from it.
    assert [row["train_loss"] for row in averaged.rows[1:]] == [row["train_loss"] for row in plain.rows[1:]]
    assert averaged.rows[1]["accuracy"] == plain.rows[1]["accuracy"]
    first = run_tiny("evaluation.local_only=false", "federation.rounds=1")
    one, two, kept = (finished.head[0].double() for finished in (first, plain, averaged))
    # Weights 1/3 and 2/3; kept in float32.
    torch.testing.assert_close(kept, (one + 2 * two) / 3, rtol=1e-5, atol=1e-7)
    assert not averaged.state.average


def test_local_training_can_use_a_sample_of_the_clients(tiny_run: Finished, run_tiny: RunTiny):
    sampled = run_tiny("evaluation.local_only_clients=2")
    assert sampled.summary["local_only_accuracy"]["num_clients"] == 2
    assert tiny_run.summary["local_only_accuracy"]["num_clients"] == tiny_run.summary["num_clients"]
    # The federation itself is the same.
    assert sampled.summary["accuracy"] == tiny_run.summary["accuracy"]
