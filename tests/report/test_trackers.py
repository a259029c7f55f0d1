"""Experiment trackers: what they are sent, what happens when one fails, and a run that has none."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fftmoe.errors import InputError
from fftmoe.report import trackers as trackers_module
from fftmoe.report.trackers import Trackers, check_trackers
from reports import config, summary

ROWS = [
    {"round": 0, "accuracy": 0.25, "bytes_down": 0, "bytes_up": 0},
    {"round": 1, "accuracy": None, "train_loss": 1.5, "bytes_down": 2048, "bytes_up": 1000},
    {"round": 2, "accuracy": 0.75, "train_loss": 1.25, "bytes_down": 5 * 2**20, "bytes_up": 2**20},
]


def test_an_unknown_tracker_names_the_nearest():
    with pytest.raises(InputError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        check_trackers(["tensorbord"])
    check_trackers([])
    check_trackers(["tensorboard"])


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "fftmoe[trackers]"), ("comet_ml", "comet_ml")])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
):
    monkeypatch.setattr(trackers_module, "installed_trackers", lambda: {"aim"})
    with pytest.raises(InputError, match="is not installed") as refused:
        check_trackers([name])
    assert f"tracker '{name}'" in str(refused.value)
    assert f"`pip install '{package}'`" in str(refused.value)


def test_every_number_of_a_round_is_tracked_and_nothing_else(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(["tensorboard"], tmp_path, "run")
    trackers.configure(config())
    for row in ROWS:
        trackers.log({**row, "by_tier": {"small": 1.0}, "void": True})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "trackers"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"accuracy", "train_loss", "bytes_down", "bytes_up"}
    assert [(e.step, e.value) for e in events.Scalars("accuracy")] == [(0, 0.25), (2, 0.75)]
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [(1, 1.5), (2, 1.25)]


class Recorder:
    """Replaces a tracker that accelerate supports; fails in the call that `fails_at` names."""

    requires_logging_directory = False
    made: ClassVar[list["Recorder"]] = []
    fails_at: ClassVar[str] = ""

    def __init__(self, run_name: str) -> None:
        self.run_name, self.calls = run_name, []
        self.made.append(self)

    def _call(self, name: str, *values: Any) -> None:
        if name == self.fails_at:
            raise ConnectionError("no answer")
        self.calls.append((name, *values))

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("configure", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._call("log", values, step)

    def finish(self) -> None:
        self._call("finish")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    known = {**trackers_module.known_trackers(), "aim": Recorder}
    monkeypatch.setattr(trackers_module, "known_trackers", lambda: known)
    monkeypatch.setattr(trackers_module, "installed_trackers", lambda: {"aim", "tensorboard"})
    monkeypatch.setattr(Recorder, "made", [])
    return Recorder


def tracked(names: list[str], folder: Path, said: list[str]) -> None:
    with closing(Trackers(names, folder, "run", said.append)) as trackers:
        trackers.configure(config(budgets=[{"name": "small", "top_k": 1}], backbone={"model": "x", "pooling": None}))
        trackers.log(ROWS[1])
        trackers.finish(summary(faults={"late": 2}, accuracy_by_round={"1": 0.5}, alarms=[{"round": 1}]))


def test_a_tracker_gets_the_recipe_and_the_final_numbers_but_nothing_about_single_clients(
    recorder: type[Recorder], tmp_path: Path
):
    tracked(["aim"], tmp_path, said := [])
    (made,) = recorder.made
    assert [call[0] for call in made.calls] == ["start", "configure", "log", "log", "finish"]
    assert made.run_name == "run"
    settings = made.calls[1][1]
    assert settings["partition.alpha"] == 0.1
    assert settings["budgets.small.top_k"] == 1
    assert "backbone.pooling" not in settings
    assert all(isinstance(value, int | float | str) for value in settings.values())
    assert made.calls[2][1:] == ({"train_loss": 1.5, "bytes_down": 2048, "bytes_up": 1000}, 1)
    final, step = made.calls[3][1:]
    assert (final["final/accuracy"], final["final/accuracy_by_tier.small"], step) == (0.75, 0.5, 3)
    assert final["final/client_accuracy.worst_decile"] == 0.125
    assert final["final/faults.late"] == 2
    assert not [name for name in final if "clients." in name or "by_round" in name or "alarms" in name]
    assert said == []


@pytest.mark.parametrize("fails_at", ["start", "configure", "log", "finish"])
def test_a_tracker_that_fails_is_reported_once_and_does_not_end_the_run(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails_at: str
):
    monkeypatch.setattr(recorder, "fails_at", fails_at)
    tracked(["aim", "tensorboard"], tmp_path, said := [])
    assert said == ["tracker aim failed; the run continues without it: ConnectionError: no answer"]
    assert list((tmp_path / "trackers").glob("events.*"))  # the other tracker got everything


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside wandb, which is not a dependency
def test_wandb_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("WANDB_SILENT", "true")):
        monkeypatch.setenv(name, value)
    tracked(["wandb"], tmp_path, said := [])
    assert said == []
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    tracked(["mlflow"], tmp_path, said := [])
    assert said == []
    experiment = mlflow.get_experiment_by_name("run")
    (found,) = mlflow.MlflowClient().search_runs([experiment.experiment_id])
    assert found.data.params["partition.alpha"] == "0.1"
    assert found.data.metrics["train_loss"] == 1.5
    assert found.data.metrics["final/accuracy"] == 0.75


# ---- a run without TensorBoard --------------------------------------------------------------------------------------

# Runs the command line as if TensorBoard were not installed: it can be neither found nor imported.
WITHOUT_TENSORBOARD = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.startswith(("tensorboard", "torch.utils.tensorboard"))
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
from fftmoe.cli.app import main
main()
"""


def run_without_tensorboard(recipe: Path, output: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    settings = ("federation.rounds=1", "evaluation.local_only=false", *settings)
    flags = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-c", WITHOUT_TENSORBOARD, "run", str(recipe), "--output", str(output), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_works_without_tensorboard(recipe_file: Path, tmp_path: Path):
    """accelerate cannot be hidden, because peft imports it; an import contract lets only fftmoe.report import it."""
    done = run_without_tensorboard(recipe_file, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    assert not (tmp_path / "run" / "trackers").exists()


def test_tensorboard_is_refused_where_it_is_not_installed(recipe_file: Path, tmp_path: Path):
    done = run_without_tensorboard(recipe_file, tmp_path / "run", "trackers=[tensorboard]")
    assert done.returncode == 2
    for words in ("'tensorboard' is not installed", "pip install 'fftmoe[trackers]'", "`trackers`"):
        assert words in done.stderr
    assert not (tmp_path / "run").exists()  # nothing was computed


def test_the_package_does_not_import_accelerates_trackers_for_itself():
    check = "import fftmoe.report.trackers, sys; assert 'accelerate' not in sys.modules, 'accelerate'"
    subprocess.run([sys.executable, "-c", check], check=True)
