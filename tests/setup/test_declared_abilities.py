"""What a method or a task declares is heeded everywhere: before training, when a run continues, and afterwards."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from crossed_inputs import WrongShare
from fftmoe.cli.pages import rebuild_report
from fftmoe.comparison.run import compare
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.methods.base import Method
from fftmoe.methods.flora import FLora
from fftmoe.methods.head_only import HeadOnly
from fftmoe.methods.local_only import LocalOnly
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.report.metric import Metric
from fftmoe.setup.cells import Variant, make_grid
from fftmoe.setup.compose import compose
from fftmoe.setup.export import export_run
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.run import resume, run
from fftmoe.store import RunFolder
from fftmoe.tasks import TASKS
from finished import Finished, check_same
from five_clients import changed


def head_only(method: Method) -> Method:
    return HeadOnly()


OWN = Plugins(methods={"flora": FLora, "alone": LocalOnly, "head": head_only}, aggregators={"mean": WeightedSum})


@pytest.fixture
def quick(recipe_values: dict[str, Any]) -> dict[str, Any]:
    return changed(recipe_values, evaluation__local_only=False, head={"kind": "averaged", "learning_rate": 0.5})


def stop_after_one_round(folder: Path) -> None:
    """Leave what a run had written when it was stopped after its first round of two."""
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "adapter")
    for path in (folder / "checkpoints").glob("round-000002*"):
        path.unlink()


@pytest.mark.parametrize("method", ["flora", "plugin:flora"])
def test_a_run_whose_method_adds_tensors_to_the_state_resumes(quick: dict[str, Any], tmp_path: Path, method: str):
    whole = run(parse_recipe(changed(quick, method=method), "here"), tmp_path / "whole", plugins=OWN).folder
    stopped = Path(shutil.copytree(whole, tmp_path / "stopped"))
    stop_after_one_round(stopped)
    assert any(name.startswith("merged.") for name in Finished(stopped).state.tensors)
    resume(stopped, plugins=OWN)
    assert check_same(Finished(whole), Finished(stopped)) >= 2


def test_what_a_method_has_merged_must_fit_its_modules(quick: dict[str, Any], tmp_path: Path):
    """As it would not if it came from another run; the digests of the checkpoint are right."""
    folder = RunFolder(run(parse_recipe(changed(quick, method="flora"), "here"), tmp_path / "run").folder)
    stop_after_one_round(folder.path)
    state = folder.load_newest().state
    assert state is not None
    one = next(name for name in state.tensors if name.startswith("merged."))
    for tensors in (
        {**state.tensors, one: state.tensors[one][:, :-1]},
        {**state.tensors, one: state.tensors[one].double()},
        {**state.tensors, "merged.nowhere.W": state.tensors[one]},
        {**state.tensors, f"{one.rpartition('.')[0]}.A": torch.zeros(2, 3)},
    ):
        folder.save_state(dataclasses.replace(state, tensors=tensors))
        with pytest.raises(InputError, match="does not fit its recipe: merged"):
            resume(folder.path)


@pytest.mark.parametrize(
    ("method", "changes", "reason"),
    [
        ("flora", {"federation__server_optimizer": "adam"}, "plugin:flora has no server optimizer"),
        ("flora", {"federation__upload": "int8"}, "what rounding left out"),
        ("flora", {"federation__aggregation": "plugin:mean"}, "averaging, so federation.aggregation=plugin:mean"),
        ("alone", {"head": {"kind": "closed-form"}}, "plugin:alone shares no feature statistics"),
        ("alone", {"evaluation__keep": "best", "data__validation": 0.2}, "clients' own models exist only for the last"),
    ],
)
def test_a_plugin_is_refused_what_it_does_not_declare(
    quick: dict[str, Any], tmp_path: Path, method: str, changes: dict[str, Any], reason: str
):
    recipe = parse_recipe(changed(quick, method=f"plugin:{method}", **changes), "here")
    with pytest.raises(InputError, match=reason):
        run(recipe, tmp_path / "run", plugins=OWN)
    assert not (tmp_path / "run").exists()


def test_the_page_of_a_plugin_without_a_global_model_says_whose_models_were_measured(
    quick: dict[str, Any], tmp_path: Path
):
    own, shipped = (
        run(parse_recipe(changed(quick, method=method), "here"), tmp_path / method[:5], plugins=OWN).folder
        for method in ("plugin:alone", "local-only")
    )
    assert "capabilities" not in Finished(shipped).summary
    plain, plugged = (rebuild_report(folder).read_text() for folder in (shipped, own))
    sentence = "mean of the clients&#39; own models on common test data"
    assert sentence in plain
    assert sentence in plugged


def test_an_implementation_that_cannot_take_the_sizes_is_refused_before_training(quick: dict[str, Any], tmp_path: Path):
    """The smallest clients hold fewer experts; a size does not depend on them."""
    recipe = parse_recipe(changed(quick, adapter__compute="grouped", adapter__expert_dim=3), "here")
    with pytest.raises(InputError, match="compute='grouped' needs"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    compose(parse_recipe(changed(quick, adapter__compute="wide", adapter__expert_dim=3), "here"))


@pytest.mark.parametrize("method", ["head-only", "plugin:head"])
def test_a_run_that_trained_the_head_only_has_no_experts_to_export(quick: dict[str, Any], tmp_path: Path, method: str):
    run(parse_recipe(changed(quick, method=method), "here"), tmp_path / "run", plugins=OWN)
    asked: list[tuple[str, dict[str, Any]]] = [("personal", {"experts": [0]}), ("lora", {})]
    if method == "head-only":  # what needs the method itself takes no plug-ins of a script
        asked += [("personal", {"tier": "large"}), ("personal", {"client": 0})]
    for form, options in asked:
        with pytest.raises(InputError, match=f"method {method} has no experts"):
            export_run(tmp_path / "run", form, tmp_path / "out", options)
        assert not (tmp_path / "out").exists()


def test_an_own_metric_is_judged_as_its_task_says(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where rows, summaries and pages are read, the task may not be known."""
    monkeypatch.setitem(TASKS, "sequence-classification", WrongShare)
    finished = Finished(run(parse_recipe(changed(quick, evaluation__local_only=True), "here"), tmp_path / "run").folder)
    judged = {"higher_is_better": False, "bounds": [0.0, 1.0]}
    assert finished.summary["metric_judged"] == judged
    assert finished.rows[-1]["metric_judged"] == judged
    found = finished.summary["verdict"]
    assert found["gain"] == pytest.approx(found["start"] - found["end"], abs=1e-6)


def test_a_comparison_judges_an_own_metric_as_its_task_says(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(TASKS, "sequence-classification", WrongShare)
    rates = {"slow": 1e-5, "fast": 0.5}
    variants = [Variant(name, {"head.learning_rate": rate}) for name, rate in rates.items()]
    with pytest.raises(InputError, match="largest possible wrong_share, which is at most 1"):
        make_grid(quick, {"target": 2.0}, variants)
    made = compare(quick, tmp_path / "compared", variants=variants, seeds=[3])
    wrong = {cell.variant: cell.summary["wrong_share"] for cell in made.cells}
    assert wrong["fast"] < wrong["slow"]
    monkeypatch.undo()
    assert "fast: lowest wrong share" in rebuild_report(tmp_path / "compared").read_text()


@pytest.mark.parametrize(("summary", "lower"), [({}, False), ({"metric": "perplexity"}, True)])
def test_a_metric_of_this_package_is_known_by_its_name(summary: dict[str, Any], lower: bool):
    assert Metric.of(summary).lower_is_better is lower
    assert "metric_judged" not in Metric.of(summary).facts
