"""Whole federations that learn which of two answers is better, and what their model is good for."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.config import parse_recipe
from fftmoe.data import Preferences
from fftmoe.methods.registry import METHODS
from fftmoe.setup.asked import evaluate_run, predict_run
from fftmoe.setup.compose import compose
from fftmoe.setup.export import export_run
from fftmoe.setup.finished import load_run
from fftmoe.setup.forecast import forecast
from fftmoe.setup.run import run
from fftmoe.tasks import PairLoss
from fftmoe.tasks.preference import PAIR_LOSSES
from finished import Finished
from five_clients import changed
from run_fixtures import RunLanguage
from shared_fixtures import Cli

AUTHORS = {"partition": {"kind": "natural", "by": "author"}}
METRIC = "preference_accuracy"


def test_a_run_learns_the_preference_from_chance_and_its_measures_agree(run_preference: RunLanguage):
    finished = run_preference(**AUTHORS, federation__rounds=5, evaluation={"personal": True, "local_only": True})
    summary = finished.summary
    assert summary["metric"] == METRIC
    first, last = finished.rows[0], finished.rows[-1]
    # Before training the model is its own reference: the margin of every pair is zero up to rounding.
    assert first[METRIC] == 0.5
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert last[METRIC] > 0.6
    assert last["reward_margin"] > 0
    assert last["loss"] < first["loss"]
    assert all(name in summary for name in (f"client_{METRIC}", f"personal_{METRIC}", f"local_only_{METRIC}"))
    measured = evaluate_run(finished.folder)
    assert measured[METRIC] == summary[METRIC]
    assert measured["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert [*measured[f"{METRIC}_by_label"]] == ["author-0", "author-1", "author-2"]


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name in ("fft-moe", "fedit", "flora", "local-only") else pytest.mark.slow)
        for name, spec in METHODS.items()
        if spec.capabilities.trains != "head"
    ],
)
def test_every_method_learns_a_preference(run_preference: RunLanguage, method: str):
    """FLoRA adds to the frozen weights, and the reference stays what it was before."""
    finished = run_preference(method=method)
    summary = finished.summary
    assert summary["clients_failed"] == 0
    assert summary["loss"] < math.log(2)
    if not METHODS[method].capabilities.personal:
        assert evaluate_run(finished.folder)["loss"] == pytest.approx(summary["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_every_loss_is_trained_and_measured_again(run_preference: RunLanguage, kind: str):
    finished = run_preference(preference={"loss": kind, "beta": 0.5})
    rows, summary = finished.rows, finished.summary
    assert summary["loss"] < rows[0]["loss"]
    assert evaluate_run(finished.folder)["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert (rows[0][METRIC] == 0.5) == PAIR_LOSSES[kind].has_reference


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": {"min_contributors": 2}, "adapter__residents": "balanced"},
        pytest.param(
            {
                "privacy": {
                    "min_contributors": 2,
                    "examples": {"clip_norm": 0.5, "noise_multiplier": 0.3, "delta": 1e-3, "epsilon": 1e5},
                },
                "adapter__residents": "balanced",
                "adapter__balance": "switch",
            },
            marks=pytest.mark.slow,
        ),
        {"federation__upload": "int8", "data__validation": 0.2, "evaluation": {"keep": "best"}},
        {"partition": {"kind": "shards", "num_clients": 5, "shards_per_client": 1}, "data__label": "kind"},
        {"data__chat_template": True},
        {"federation__group_by_length": True},
    ],
    ids=["sums", "private examples", "validated", "shards", "chats", "like lengths"],
)
def test_other_settings(run_preference: RunLanguage, changes: dict[str, Any]):
    summary = run_preference(**changes).summary
    assert summary["clients_failed"] == 0
    assert 0 < summary["loss"] < (math.log(2) if "examples" not in changes.get("privacy", {}) else math.inf)


def test_cached_states_and_a_cache_of_references_change_nothing_beyond_rounding(
    run_preference: RunLanguage, preference_values: dict[str, Any]
):
    kept, computed = run_preference(), run_preference(engine={"prefix_cache": "off"})
    train = compose(parse_recipe(preference_values, "test")).train
    assert isinstance(train, Preferences)
    assert hasattr(train.answers, "block")
    assert train.reference.all()
    # Batches of other widths round otherwise, and training carries it on.
    assert kept.summary["loss"] == pytest.approx(computed.summary["loss"], rel=1e-4)


def test_parts_of_a_step_and_blocks_computed_again_give_the_gradients_of_the_step(
    run_preference: RunLanguage, preference_values: dict[str, Any]
):
    engine = {**preference_values["engine"], "micro_batch_size": 2, "checkpointing": True}
    with_parts = run_preference(engine=engine, adapter__balance="none", adapter__z_strength=0.0)
    whole = run_preference(adapter__balance="none", adapter__z_strength=0.0)
    # Sums of float32 numbers in another order, carried on by AdamW.
    assert with_parts.summary["loss"] == pytest.approx(whole.summary["loss"], rel=1e-4)


def test_a_pair_may_have_twice_as_many_tokens_as_a_text(preference_values: dict[str, Any]):
    """What a server expects of a client, and with differential privacy what a plan counts, is at most two texts."""
    hidden = {"clip_norm": 0.5, "noise_multiplier": 0.5, "delta": 1e-3, "epsilon": 1e4}
    values = changed(preference_values, privacy={"min_contributors": 2, "examples": hidden}, adapter__balance="switch")
    experiment = compose(parse_recipe(changed(values, adapter__residents="balanced"), "test"), measures=False)
    assert experiment.mean_tokens == 2 * 19
    plain = compose(parse_recipe(preference_values, "test"), measures=False)
    assert plain.mean_tokens == float(plain.train.lengths.double().mean())
    assert int(plain.train.lengths.max()) > 19 // 2


def test_a_plan_computes_no_reference(preference_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fftmoe.setup.prepared.with_references", None)
    found = forecast(parse_recipe(preference_values, "test"))
    assert found.prefix_refused is None
    train = compose(parse_recipe(preference_values, "test"), measures=False).train
    assert found.prefix_bytes == pytest.approx(4 * 20 * int(train.lengths.sum()) * (61 + 23) / 61, rel=0.3)


def test_a_tuned_model_continues_prompts(run_preference: RunLanguage):
    """It is a language model: it answers a prompt, and which of two answers is better is measured by `evaluate`."""
    answers = predict_run(run_preference().folder, ["say ash", " "], max_new_tokens=3)
    assert [answer["prompt"] for answer in answers] == ["say ash", " "]
    assert answers[0]["completion"] is not None
    assert answers[1]["reason"] == "the text is only white space"


def test_which_of_two_answers_is_better_is_measured_on_any_table(run_preference: RunLanguage, tmp_path: Path, cli: Cli):
    folder, other = run_preference().folder, tmp_path / "other.csv"
    with other.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen", "rejected"), *[("say ash", "ash", "bay")] * 5])
    found = evaluate_run(folder, str(other), "train")
    assert found[METRIC] in (0.0, 1.0)  # five equal pairs
    assert found["num_examples"] == 5
    with other.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "chosen"), ("say ash", "ash")])
    outcome = cli("evaluate", folder, "--data", other, "--split", "train")
    assert outcome.status == 2
    assert "no column 'rejected'" in outcome.err


def test_a_tuned_model_is_talked_with(run_preference: RunLanguage, cli: Cli):
    folder = run_preference(data__chat_template=True).folder
    outcome = cli("chat", folder, "--prompt", "say ash", "--max-new-tokens", "3")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("kind", ["peft", "lora"])
def test_an_export_is_a_language_model(run_preference: RunLanguage, tmp_path: Path, kind: str):
    finished = run_preference()
    export_run(finished.folder, kind, tmp_path / "out", {"rank": 2, "steps": 1} if kind == "lora" else {})
    card = (tmp_path / "out" / "README.md").read_text().replace("\\", "")
    assert "preference_accuracy on the test split" in card
    assert "AutoPeftModelForCausalLM" in card
    assert "learned which of two answers is better, with the loss dpo (beta 0.5)." in card
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    if kind == "lora":
        measured = json.loads((tmp_path / "out" / "export.json").read_text())["metric"]
        assert measured["backbone_alone"][METRIC] == 0.5
        assert measured["mixture_of_experts"]["loss"] == pytest.approx(finished.summary["loss"], rel=1e-4)


def test_the_same_adapter_continues_a_run_that_imitated(
    run_preference: RunLanguage, preference_values: dict[str, Any], tmp_path: Path
):
    """A run on completions, and then a preference from there; the reference stays the backbone without adapter."""
    imitated = changed(preference_values, backbone__task="causal-lm")
    imitated["data"] = {**imitated["data"], "completion": "chosen"}
    del imitated["data"]["chosen"], imitated["data"]["rejected"], imitated["preference"]
    first = run(parse_recipe(imitated, "first"), tmp_path / "first").folder
    second = run(parse_recipe(changed(preference_values, start_from=str(first)), "second"), tmp_path / "second")
    rows = Finished(second.folder).rows
    assert rows[0]["reward_margin"] > 0.01
    plain = compose(parse_recipe(preference_values, "plain"))
    started = compose(parse_recipe(changed(preference_values, start_from=str(first)), "second"))
    assert isinstance(plain.train, Preferences)
    assert isinstance(started.train, Preferences)
    assert torch.equal(plain.train.reference, started.train.reference)


def test_the_page_and_the_lines_name_the_metric(run_preference: RunLanguage, cli: Cli):
    folder = run_preference().folder
    assert "preference accuracy" in (folder / "report.html").read_text()
    outcome = cli("evaluate", folder)
    assert outcome.status == 0
    assert METRIC in outcome.out
    assert load_run(folder).run.pair_loss == PairLoss("dpo", beta=0.5)
