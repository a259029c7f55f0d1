"""What to do next: the command fits how a run ended, and runs as it is printed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import load_recipe
from fftmoe.report.next_step import next_step
from fftmoe.report.page import report_page
from fftmoe.report.record import RunRecord
from fftmoe.store import read_config
from fftmoe.tasks import TASKS
from finished import Finished
from reports import config, rows, structure_of, summary
from shared_fixtures import Cli
from tables import write_csv

TRAINED = {"rounds": 3, "clients_per_round": 2, "learning_rate": 0.003}


def entry(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - 0.05, value + 0.05]}


def clients_with(*alone: float | None) -> dict[str, Any]:
    """Clients of 0.5 each, with these values by themselves."""
    return {"tier": ["small"] * len(alone), "accuracy": [0.5] * len(alone), "alone": list(alone)}


def run_of(
    recipe: dict[str, Any] | None = None,
    *,
    over_sites: bool = False,
    validated: tuple[float | None, ...] = (),
    **facts: Any,
) -> RunRecord:
    """A run of accuracy 0.75 that began at 0.25; `validated` are its values on validation rows, round by round."""
    recipe = {"federation": TRAINED, "backbone": {"model": "m", "task": "sequence-classification"}, **(recipe or {})}
    recorded = summary(**{"accuracy_interval": [0.7, 0.8], **facts})
    journal = rows()
    for row, value in zip(journal, validated, strict=False):
        row["validation_accuracy"] = value
    return RunRecord(config(**recipe), journal, recorded, "runs/my run", over_sites)


WORSE: dict[str, Any] = {"verdict": {"result": "worse", "start": 0.9, "end": 0.75, "gain": -0.15, "margin": 0.05}}
DIVERGED = {"verdict": {"result": "diverged", "first_loss": 1.0, "last_loss": None}}
SLOWER = "fftmoe run 'runs/my run/config.yaml' --set federation.learning_rate=0.001 --output 'runs/my run-slower'"
LONGER = "fftmoe run 'runs/my run/config.yaml' --set federation.rounds=6 --output 'runs/my run-longer'"
PREDICT = "fftmoe predict 'runs/my run' 'some text'"
COMPARE = "fftmoe compare 'runs/my run/config.yaml' --methods fft-moe,{} --output 'runs/my run-comparison'"
LEVEL: dict[str, Any] = {"verdict": {"result": "level", "start": 0.7, "end": 0.75, "gain": 0.05, "margin": 0.07}}
NOT_MEASURED = {"value": None, "reason": "no single labels"}
AS_HEAD = {"head_only": entry(0.75)}
OVER_HEAD = {"head_only": entry(0.5)}
GROWS: tuple[float | None, ...] = (0.5, None, 0.55, 0.6)
FALLS: tuple[float | None, ...] = (0.6, None, 0.55, 0.59)
FEW = {"name": ["a", "b"], "actual": [38, 12], "predicted": [50, 0], "hits": [38, 0]}
EVEN = {"name": ["a", "b"], "actual": [25, 25], "predicted": [25, 25], "hits": [19, 19]}
SPENT = {"privacy": {"epsilon": 2.0, "stopped_early": False}}


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        ({}, PREDICT),
        (WORSE, SLOWER),
        (DIVERGED, SLOWER),
        ({"baselines": {"head_only": entry(0.95)}}, SLOWER),
        ({"baselines": {**OVER_HEAD, "alone": entry(0.95)}}, COMPARE.format("fedsa-lora")),
        ({"clients": clients_with(0.9, 0.9, 0.9, 0.1, 0.1)}, COMPARE.format("fedsa-lora")),
        ({"clients": clients_with(0.9, 0.9, 0.1, 0.1, 0.1)}, PREDICT),
        ({"clients": clients_with(None, None, 0.5, 0.5, 0.9)}, PREDICT),
        ({"baselines": AS_HEAD, "validated": GROWS}, LONGER),
        ({"baselines": AS_HEAD, "validated": FALLS}, COMPARE.format("head-only")),
        # The last round is kept where it is within chance of the best one, which does not make it the best one.
        ({"baselines": AS_HEAD, "validated": FALLS, "best_round": 3}, COMPARE.format("head-only")),
        ({"baselines": {**OVER_HEAD, "centralized": entry(0.95)}, "validated": GROWS}, LONGER),
        ({"baselines": {**OVER_HEAD, "centralized": entry(0.95)}, "validated": FALLS}, PREDICT),
        ({"baselines": {**OVER_HEAD, "alone": entry(0.5)}, "validated": GROWS}, PREDICT),
        # Where nothing is validated, the curve says whether the last round is the best one.
        ({"baselines": AS_HEAD, "accuracy_by_round": {"0": 0.5, "1": 0.6, "3": 0.7}}, LONGER),
        ({"baselines": AS_HEAD, "accuracy_by_round": {"0": 0.5, "1": 0.8, "3": 0.7}}, COMPARE.format("head-only")),
        ({"baselines": AS_HEAD, "validated": GROWS, "stopped_early": True}, COMPARE.format("head-only")),
        ({"baselines": AS_HEAD, "validated": GROWS, **SPENT}, COMPARE.format("head-only")),
        # Where no head alone can be measured, a result like the start is no success either.
        ({**LEVEL, "validated": GROWS}, LONGER),
        ({**LEVEL, "validated": FALLS}, COMPARE.format("centralized")),
        ({**LEVEL, "baselines": {"head_only": NOT_MEASURED}, "validated": FALLS}, COMPARE.format("centralized")),
        ({**LEVEL, "baselines": OVER_HEAD, "validated": FALLS}, PREDICT),
        # Nothing is better than all right, and no label is learned by a model that always gives the same one.
        ({"accuracy": 1.0, "baselines": {"head_only": entry(1.0)}, "validated": GROWS}, PREDICT),
        ({"baselines": OVER_HEAD, "labels": FEW, "validated": GROWS}, LONGER),
        ({"baselines": OVER_HEAD, "labels": FEW, "validated": FALLS}, COMPARE.format("centralized")),
        ({"baselines": OVER_HEAD, "labels": EVEN, "validated": FALLS}, PREDICT),
    ],
)
def test_the_command_fits_how_a_run_ended(facts: dict[str, Any], command: str):
    assert next_step(run_of(**facts)).command == command


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ({"backbone": {"model": "m", "task": "image-classification"}}, "fftmoe predict 'runs/my run' photos/"),
        ({"backbone": {"model": "m", "task": "causal-lm"}}, "fftmoe predict 'runs/my run' 'some prompt'"),
        ({"backbone": {"model": "m", "task": "regression"}}, PREDICT),
        ({"backbone": {"model": "m", "task": "token-classification"}}, PREDICT),
        ({"method": "fedsa-lora"}, "fftmoe evaluate 'runs/my run'"),
    ],
)
def test_a_good_run_is_used_as_its_task_allows(recipe: dict[str, Any], command: str):
    assert next_step(run_of(recipe)).command == command


COLUMNS: dict[str, dict[str, Any]] = {
    "regression": {"targets": ["price"]},
    "preference": {"prompt": "asked", "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("facts", [{"baselines": AS_HEAD}, LEVEL, {"baselines": {**OVER_HEAD, "alone": entry(0.95)}}])
def test_every_method_that_is_proposed_can_train_the_task(task: str, facts: dict[str, Any]):
    step = next_step(run_of({"backbone": {"model": "m", "task": task}}, validated=FALLS, **facts))
    words = shlex.split(step.command)
    methods = words[words.index("--methods") + 1].split(",") if "--methods" in words else []
    for method in methods:
        data = {"source": "rows.csv", **COLUMNS.get(task, {})}
        recipe = {"backbone": {"model": "m", "task": task}, "data": data, "method": method}
        assert load_recipe(recipe, may_read=False).method == method


def test_two_measurements_do_not_make_a_best_round():
    two: tuple[float | None, ...] = (0.5, None, None, 0.6)
    run = run_of(baselines=AS_HEAD, validated=two)
    assert next_step(run).why == "the rounds have improved the model: train for more of them"
    assert next_step(run).command == LONGER


def test_a_head_that_is_too_fast_is_slowed_and_not_the_adapter():
    recipe: dict[str, Any] = {"method": "head-only", "head": {"learning_rate": 0.1}}
    assert " --set head.learning_rate=0.03 " in next_step(run_of(recipe, **WORSE)).command


def test_a_run_over_sites_is_not_told_what_sites_cannot_do():
    helped: dict[str, Any] = {"baselines": {**OVER_HEAD, "alone": entry(0.95)}}
    again = next_step(run_of(over_sites=True, **WORSE))
    assert again.command.startswith("fftmoe deploy server SERVER --recipe 'runs/my run/config.yaml' --set federation.")
    alone = next_step(run_of(over_sites=True, **helped))
    assert alone.command == ""
    page = report_page(RunRecord(config(), rows()[:2], {}, "runs/x", over_sites=True)).html
    assert "the command that started it continues it." in structure_of(page).text


def test_an_unfinished_run_is_continued():
    assert next_step(RunRecord(config(), rows()[:2], {}, "runs/x")).command == "fftmoe resume runs/x"


def test_a_recipe_from_a_stranger_gives_no_other_command():
    facts: dict[str, Any] = {"baselines": AS_HEAD, "validated": FALLS}
    step = next_step(run_of({"method": "x;touch y"}, **facts))
    assert shlex.split(step.command)[3:5] == ["--methods", "x;touch y,head-only"]


# ---- the commands of a real run --------------------------------------------------------------------------------------


def step_of(finished: Finished, **facts: Any) -> list[str]:
    """The words of the command for the tiny run, as if it had ended otherwise."""
    record = RunRecord(read_config(finished.folder), (), {**finished.summary, **facts}, str(finished.folder))
    return shlex.split(next_step(record).command)


def test_the_page_and_the_terminal_say_the_same(tiny_run: Finished):
    words = step_of(tiny_run)
    assert shlex.join(words) in structure_of((tiny_run.folder / "report.html").read_text()).text
    assert f"  {shlex.join(words)}\n" in tiny_run.outcome.out


def test_a_good_run_answers_as_it_is_told(cli: Cli, tiny_run: Finished):
    outcome = cli(*step_of(tiny_run, verdict={"result": "better"}, labels={})[1:])
    assert outcome.status == 0
    assert json.loads(outcome.out)["label"]


def test_another_run_starts_from_the_recipe_of_this_one(cli: Cli, tiny_run: Finished, tmp_path: Path):
    words = step_of(tiny_run, **WORSE)
    assert words[:2] == ["fftmoe", "run"]
    outcome = cli(*words[1:-1], tmp_path / "slower")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "slower" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("as_good", ["head_only", "alone"])
def test_a_comparison_starts_from_the_recipe_of_this_one(cli: Cli, tiny_run: Finished, tmp_path: Path, as_good: str):
    value = tiny_run.summary["accuracy"]
    known = {"head_only": AS_HEAD, "alone": {"head_only": entry(0.0), "alone": entry(1.9)}}[as_good]
    known = {**known, "head_only": entry(value if as_good == "head_only" else -1.0)}
    words = step_of(tiny_run, baselines=known, accuracy_by_round={"0": 0.9, "1": 0.5}, verdict={}, labels={})
    assert words[:2] == ["fftmoe", "compare"]
    outcome = cli(*words[1:-1], tmp_path / "compared", "--seeds", "1")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "compared" / "comparison-figures.csv").exists()


@pytest.mark.slow
def test_a_run_with_all_defaults_can_be_compared(cli: Cli, backbone_folder: Path, tmp_path: Path):
    """A personal method takes what it can of a recipe with a solved head, rows that are set aside, and a best round."""
    rows = {"text": [f"ash {n}" for n in range(240)], "label": ["ab"[n % 2] for n in range(240)]}
    write_csv(tmp_path / "notes.csv", rows)
    small = ("federation.rounds=1", "federation.local_steps=1", "engine.workers=1", "adapter.blocks=last-1")
    settings = [part for override in small for part in ("--set", override)]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"data: {{source: {tmp_path / 'notes.csv'}}}\nbackbone: {{model: {backbone_folder}}}\n")
    assert cli("run", recipe, "--output", tmp_path / "out", *settings).status == 0
    record = RunRecord(
        read_config(tmp_path / "out"), (), summary(clients=clients_with(0.9, 0.9, 0.9)), str(tmp_path / "out")
    )
    words = shlex.split(next_step(record).command)
    assert words[1] == "compare"
    outcome = cli(*words[1:], "--seeds", "1")
    assert (outcome.status, "failed" in outcome.out) == (0, False), outcome.err


def test_it_is_said_where_not_even_central_training_helps():
    for central, beginning in ((0.7, "not even training on all rows in one place"), (0.8, "it is not clear")):
        found = next_step(run_of(baselines={**AS_HEAD, "centralized": entry(central)}, validated=FALLS))
        assert found.why.startswith(beginning)
        assert found.command == COMPARE.format("head-only")
