"""The baselines beside a result: what each is measured by, where it is impossible, and what it costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.setup.baselines import training_alone, training_together, why_not
from fftmoe.setup.run import resume, run
from finished import Finished
from five_clients import CLOSED
from interrupting import Killed, interrupt, without_clocks
from run_fixtures import ComposeFive, RunFive, RunLanguage, RunTiny, as_options
from shared_fixtures import Cli

ALL = {"baselines": ["head_only", "alone", "centralized"]}
HARD = ("data.label=author", "evaluation.local_only_clients=3")  # texts do not tell their authors, so heads differ
SOLVED = {"kind": "closed-form", "num_features": 37, "every": 2}


def check_entry(entry: dict[str, Any]) -> None:
    """It has a value inside its interval, or a reason."""
    if entry["value"] is None:
        assert entry["interval"] is None
        assert len(entry["reason"]) > 20
    else:
        low, high = entry["interval"]
        assert low <= entry["value"] <= high
        assert [*entry] == ["value", "interval"]


@pytest.fixture(scope="module")
def solved(run_tiny: RunTiny) -> Finished:
    """A run with a closed-form head and all baselines."""
    everything = "evaluation={baselines: [head_only, alone, centralized]}"
    return run_tiny("head={kind: closed-form, features: linear}", everything, *HARD)


def test_a_run_has_its_baselines_with_intervals(solved: Finished):
    summary = solved.summary
    assert [*summary["baselines"]] == ["head_only", "alone", "centralized"]
    for entry in summary["baselines"].values():
        assert entry["value"] is not None
        check_entry(entry)
    low, high = summary["accuracy_interval"]
    assert low <= summary["accuracy"] <= high
    assert summary["best_round"] is None
    assert summary["baselines"]["alone"]["value"] == pytest.approx(summary["local_only_accuracy"]["mean"])


def test_terminal_and_page_show_every_baseline(solved: Finished):
    page = (solved.folder / "report.html").read_text()
    for name, words in (
        ("head_only", "the solved head alone"),
        ("alone", "training alone"),
        ("centralized", "training on all rows in one place"),
    ):
        entry = solved.summary["baselines"][name]
        low, high = entry["interval"]
        assert f"  {words}: {entry['value']:.3f} ({low:.3f} to {high:.3f})" in solved.outcome.out
        assert words in page
        assert f"{low:.3f} to {high:.3f}" in page


def test_the_head_alone_is_the_model_of_round_0_on_all_test_rows(run_tiny: RunTiny, solved: Finished):
    first, entry = solved.rows[0], solved.summary["baselines"]["head_only"]
    assert (entry["value"], entry["interval"]) == (first["accuracy"], first["accuracy_interval"])
    settings = ("head={kind: closed-form, features: linear}", "evaluation={baselines: [head_only], max_examples: 7}")
    sampled = run_tiny(*settings, *HARD)
    assert sampled.rows[0]["accuracy_interval"] != first["accuracy_interval"]
    assert sampled.summary["baselines"]["head_only"] == entry


@pytest.mark.parametrize("head", ["{kind: one-vs-all, learning_rate: 1.0}", "{kind: averaged, learning_rate: 0.5}"])
def test_the_head_alone_is_solved_where_the_run_trains_another(run_tiny: RunTiny, solved: Finished, head: str):
    """On a sample during the run, and on all test rows for the baseline. Nothing else of the run changes."""
    settings = (*HARD, f"head={head}", "evaluation.max_examples=7", "evaluation.local_only=false")
    trained = run_tiny(*settings, "evaluation.baselines=[head_only]")
    assert trained.summary["baselines"]["head_only"] == solved.summary["baselines"]["head_only"]
    without = run_tiny(*settings)
    assert trained.adapter == without.adapter
    assert trained.summary["bytes_up"] == without.summary["bytes_up"]
    assert "evaluation.baselines" in without.summary["baselines"]["head_only"]["reason"]


def test_the_head_alone_of_a_run_that_starts_from_an_adapter_has_no_adapter(run_tiny: RunTiny, solved: Finished):
    settings = ("head={kind: closed-form, features: linear}", "evaluation={baselines: [head_only]}", *HARD)
    first = run_tiny(*settings, "federation.learning_rate=0.3")
    warm = run_tiny(*settings, f"start_from={first.folder}")
    assert warm.rows[0]["accuracy"] != solved.rows[0]["accuracy"]
    assert warm.summary["baselines"]["head_only"] == solved.summary["baselines"]["head_only"]


@pytest.mark.parametrize(("place", "round"), [("before the row", 1), ("before the checkpoint", 2)])
def test_a_resumed_run_has_the_same_baselines(recipe_values: dict[str, Any], tmp_path: Path, place: str, round: int):
    settings = {"head": SOLVED, "evaluation": {**ALL, "max_examples": 7}, "trackers": []}
    recipe = parse_recipe({**recipe_values, **settings}, "tiny")
    run(recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, place, round)
        with pytest.raises(Killed):
            run(recipe, tmp_path / "run")
    resume(tmp_path / "run")
    assert without_clocks(tmp_path / "run") == without_clocks(tmp_path / "whole")


def test_a_run_that_is_killed_among_the_baselines_ends_the_same(recipe_values: dict[str, Any], tmp_path: Path):
    recipe = parse_recipe({**recipe_values, "head": SOLVED, "evaluation": ALL}, "tiny")
    run(recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fftmoe.setup.baselines.train_together", _killed)
        with pytest.raises(Killed):
            run(recipe, tmp_path / "run")
    resume(tmp_path / "run")
    assert without_clocks(tmp_path / "run") == without_clocks(tmp_path / "whole")


def _killed(*_: Any) -> Any:
    raise Killed


def test_all_rows_together_are_trained_as_long_as_all_clients_in_all_rounds(compose_five: ComposeFive):
    """Five clients of 113 rows; two rounds of three."""
    assert training_together(compose_five()).local_steps == 2 * 3 * 2
    epochs = {"federation.local_steps": None, "federation.local_epochs": 2}
    steps = training_together(compose_five(**epochs)).local_steps
    assert steps == round(2 * 3 * 2 * 113 / 5 / 5)
    assert training_together(compose_five(**epochs)).local_epochs is None


def test_baselines_train_at_the_rates_of_the_run(compose_five: ComposeFive):
    """Of four rounds with a rate that falls, whatever the steps of one client are in them."""
    experiment = compose_five(**{"federation.schedule": "linear", "federation.rounds": 4})
    assert training_together(experiment).rate_factors == (1, 0.75, 0.5, 0.25)
    assert training_alone(experiment).rate_factors == (1, 0.75, 0.5, 0.25)
    assert training_alone(compose_five(**{"federation.schedule": "constant"})).rate_factors == ()


PRIVATE = {"head": {"kind": "one-vs-all", "learning_rate": 0.5}, "adapter.residents": "balanced"}
NOISE = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3, "min_contributors": 2}


def test_where_a_baseline_is_impossible_the_reason_is_told(compose_five: ComposeFive):
    everything = {"evaluation": ALL}
    sums = why_not(compose_five(**everything, **PRIVATE, privacy={"min_contributors": 2}))
    assert all(reason and "privacy" in reason for reason in sums.values())
    noisy = why_not(compose_five(**everything, **PRIVATE, privacy=NOISE, **{"data.labels": ["blue", "green", "red"]}))
    assert all(reason and "privacy" in reason for reason in noisy.values())
    kept = why_not(
        compose_five(
            "fft-moe", CLOSED, **everything, privacy={"min_contributors": 2}, **{"adapter.residents": "balanced"}
        )
    )
    assert kept["head_only"] is None  # it is the head that the run solves in any case
    remote = why_not(replace(compose_five("fft-moe", CLOSED, **everything), remote=True))
    assert remote["head_only"] is None
    assert "sites" in (remote["alone"] or "")
    assert "sites" in (remote["centralized"] or "")
    assert "sites" in (why_not(replace(compose_five(**everything), remote=True))["head_only"] or "")
    assert "by themselves" in (why_not(compose_five("local-only", **everything))["alone"] or "")
    one = why_not(compose_five("centralized", **everything))
    assert "one client" in (one["alone"] or "")
    assert "one client" in (one["centralized"] or "")


@pytest.mark.parametrize("method", ["fedit", "hetlora", "flora", "fedsa-lora", "flame", "head-only", "local-only"])
def test_every_method_has_baselines_of_its_own_kind(run_five: RunFive, method: str):
    summary = run_five(method, evaluation=ALL).summary
    for entry in summary["baselines"].values():
        check_entry(entry)
    assert summary["baselines"]["centralized"]["value"] is not None
    assert len(summary["accuracy_interval"]) == 2


def test_a_language_model_has_the_same_by_its_perplexity(run_language: RunLanguage):
    summary = run_language(evaluation=ALL).summary
    for entry in summary["baselines"].values():
        assert entry["value"] > 1
        check_entry(entry)
    assert summary["baselines"]["head_only"]["value"] == pytest.approx(summary["verdict"]["start"])


def test_baselines_are_off_by_one_word_and_named_from_a_list(
    recipe_values: dict[str, Any], cli: Cli, recipe_file: Path
):
    off = parse_recipe({**recipe_values, "evaluation": {"baselines": "off"}}, "tiny").evaluation
    assert (off.baselines, off.asked) == (None, frozenset())
    wrong = cli("plan", recipe_file, *as_options("evaluation.baselines=[random]"))
    assert wrong.status == 2
    assert "evaluation.baselines" in wrong.err
