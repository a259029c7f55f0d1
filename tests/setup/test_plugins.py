"""Custom methods, aggregators and partitioners, and what a recipe may not name."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fftmoe
from fftmoe.comparison.run import compare
from fftmoe.config import parse_recipe
from fftmoe.errors import InputError, RunError
from fftmoe.methods.fedit import FedIt
from fftmoe.methods.fft_moe import FftMoe
from fftmoe.methods.local_only import LocalOnly
from fftmoe.methods.merge.aggregate import WeightedSum
from fftmoe.records import Experts, ServerState
from fftmoe.setup.compose import compose
from fftmoe.setup.forecast import seconds_by_tier
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.run import run
from fftmoe.store import RunFolder


@dataclass(frozen=True)
class SameForAll(FftMoe):
    """Every client holds the first experts of the pool."""

    def assign(self, state: ServerState, cohort: Any) -> dict[int, Experts]:
        budgets = {client: self.budgets[client] for client in cohort}
        return {c: {block: tuple(range(b.experts)) for block in b.blocks} for c, b in budgets.items()}


class OwnFedIt(FedIt):
    pass


class Frozen(WeightedSum):
    """An aggregator that changes no tensor."""

    def mean(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        deltas, trained = super().mean()
        return {name: torch.zeros_like(delta) for name, delta in deltas.items()}, trained


def in_turn(labels: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
    return np.arange(len(labels)) % num_clients


def changed(values: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    """Return the recipe with changes; a mapping changes keys of its section."""
    return {**values, **{k: {**values.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}}


def plugged(values: Mapping[str, Any], plugins: Plugins, **sections: Any) -> Any:
    return compose(parse_recipe(changed(values, **sections), "here"), plugins)


def test_a_custom_method_decides_who_holds_which_experts(recipe_values: dict[str, Any], tmp_path: Path):
    plugins = Plugins(methods={"same": SameForAll})
    experiment = plugged(
        recipe_values, plugins, method="plugin:same", evaluation={"baselines": "off", "local_only": False}
    )
    assert isinstance(experiment.method, SameForAll)
    state = experiment.method.init(experiment.model)
    for client, experts in experiment.method.assign(state, range(7)).items():
        held = experiment.budgets[client].experts
        assert experts == {1: tuple(range(held)), 2: tuple(range(held))}
    result = run(experiment.recipe, tmp_path / "run", plugins=plugins)
    assert result.summary["method"] == "plugin:same"
    assert result.summary["rounds_completed"] == 2


def test_a_custom_lora_method_gets_factors_and_what_fedit_is_given(recipe_values: dict[str, Any]):
    plugins = Plugins(methods={"own": OwnFedIt}, aggregators={"frozen": Frozen})
    experiment = plugged(recipe_values, plugins, method="plugin:own", federation={"aggregation": "plugin:frozen"})
    own = plugged(recipe_values, Plugins(), method="fedit")
    assert type(experiment.method) is OwnFedIt
    assert experiment.method.merge is Frozen
    assert experiment.method.modules == own.method.modules
    assert experiment.tiers == own.tiers
    assert experiment.tiers[0].rank > 0


def test_a_wrapper_of_methods_can_be_a_plugin(recipe_values: dict[str, Any]):
    experiment = plugged(recipe_values, Plugins(methods={"alone": LocalOnly}), method="plugin:alone")
    assert isinstance(experiment.method, LocalOnly)


@pytest.mark.parametrize("method", ["fft-moe", "fedit", "head-only"])
def test_a_custom_aggregator_merges(method: str, recipe_values: dict[str, Any], tmp_path: Path):
    plugins = Plugins(aggregators={"frozen": Frozen})
    experiment = plugged(
        recipe_values,
        plugins,
        method=method,
        federation={"aggregation": "plugin:frozen", "rounds": 1},
        evaluation={"baselines": "off", "local_only": False},
    )
    before = experiment.method.init(experiment.model)
    with pytest.raises(RunError, match="nothing was learned"):  # this aggregator keeps the model as it is
        run(experiment.recipe, tmp_path / "run", plugins=plugins)
    state = RunFolder(tmp_path / "run").load_newest().state
    assert state is not None
    assert state.round == 1
    assert all(torch.equal(state.tensors[name], value) for name, value in before.tensors.items())


def test_a_custom_partitioner_divides_the_examples(recipe_values: dict[str, Any]):
    values = changed(recipe_values, partition={"kind": "plugin:turns"})
    del values["partition"]["alpha"]
    experiment = plugged(values, Plugins(partitioners={"turns": in_turn}))
    assert [rows.tolist()[:2] for rows in experiment.partition.indices] == [[c, c + 7] for c in range(7)]


def by_author(labels: np.ndarray, num_clients: int, seed: int, columns: Mapping[str, Any]) -> np.ndarray:
    assert set(columns) >= {"text", "label", "author"}
    names = sorted(set(columns["author"]))
    return np.array([names.index(author) % num_clients for author in columns["author"]])


@pytest.mark.parametrize("data", [{}, {"train_examples": 97}, {"validation_examples": 11}])
def test_a_partitioner_gets_every_column_of_the_rows_that_it_divides(
    data: dict[str, Any], recipe_values: dict[str, Any], data_folder: Path
):
    values = changed(recipe_values, partition={"kind": "plugin:author", "num_clients": 2}, data=data)
    values = changed(values, federation={"clients_per_round": 2})
    del values["partition"]["alpha"]
    experiment = plugged(values, Plugins(partitioners={"author": by_author}))
    natural = changed(values, partition={"kind": "natural", "by": "author", "num_clients": None})
    expected = plugged(natural, Plugins())
    assert len(expected.partition) > 2
    mine: list[int] = []
    for client in range(2):
        rows = [expected.partition.indices[one] for one in range(client, len(expected.partition), 2)]
        assert experiment.partition.indices[client].tolist() == sorted(np.concatenate(rows).tolist())
        mine += experiment.partition.indices[client].tolist()
    assert sorted(mine) == list(range(len(experiment.train)))


def test_a_partitioner_is_told_of_a_column_that_the_data_has_not(recipe_values: dict[str, Any]):
    def wrong(labels: np.ndarray, num_clients: int, seed: int, *, columns: Mapping[str, Any]) -> np.ndarray:
        return np.array(columns["autor"])

    values = changed(recipe_values, partition={"kind": "plugin:wrong"})
    del values["partition"]["alpha"]
    with pytest.raises(InputError, match=r"plugin:wrong asks for a column 'autor', .*did you mean 'author'"):
        plugged(values, Plugins(partitioners={"wrong": wrong}))


def test_a_comparison_takes_plugins_for_methods_partitions_and_aggregation(
    recipe_values: dict[str, Any], tmp_path: Path
):
    plugins = Plugins({"same": SameForAll}, {"mean": WeightedSum}, {"turns": in_turn})
    flags: dict[str, Any] = {
        "methods": ["plugin:same", "fedit"],
        "heads": ["averaged", "one-vs-all"],
        "partitions": ["plugin:turns", "iid"],
        "seeds": [1],
        "overrides": {"federation.aggregation": "plugin:mean", "federation.rounds": 1},
    }
    with pytest.raises(InputError, match="plugin:same"):
        compare(recipe_values, tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()
    made = compare(recipe_values, tmp_path / "out", plugins=plugins, **flags)
    assert [(cell.variant, cell.partition, cell.status) for cell in made.cells] == [
        (f"{method}+{head}", partition, "done")
        for partition in ("plugin:turns", "iid")
        for method in ("plugin:same", "fedit")
        for head in ("averaged", "one-vs-all")
    ]
    again = compare(recipe_values, tmp_path / "out", plugins=plugins, **flags)
    assert [cell.summary for cell in again.cells] == [cell.summary for cell in made.cells]


@pytest.mark.parametrize(
    ("divide", "message"),
    [
        (lambda labels, clients, seed: labels[:-1], r"integers \[113\]"),
        (lambda labels, clients, seed: labels / 2, "float64"),
        (lambda labels, clients, seed: np.full_like(labels, clients), "returned clients 7 to 7; there are 0 to 6"),
        (lambda labels, clients, seed: np.zeros_like(labels), "client 1 has 0 examples"),
    ],
)
def test_an_invalid_division_is_refused(divide: Any, message: str, recipe_values: dict[str, Any]):
    values = changed(recipe_values, partition={"kind": "plugin:odd"})
    del values["partition"]["alpha"]
    with pytest.raises(InputError, match=message):
        plugged(values, Plugins(partitioners={"odd": divide}))
    with pytest.raises(InputError, match=r"does not use partition\.alpha"):
        plugged(recipe_values, Plugins(partitioners={"odd": divide}), partition={"kind": "plugin:odd"})


def test_an_unknown_plugin_is_refused_before_anything_is_loaded(recipe_values: dict[str, Any]):
    plugins = Plugins(methods={"mine": SameForAll})
    missing = {"backbone": {"model": "/nowhere"}}
    with pytest.raises(InputError, match=r"plugin:mime; did you mean 'mine'\?"):
        plugged(recipe_values, plugins, method="plugin:mime", **missing)
    with pytest.raises(InputError, match="there are no partitioners but fftmoe's own here"):
        plugged(recipe_values, plugins, partition={"kind": "plugin:mine"}, **missing)
    with pytest.raises(InputError, match=r"entry point group 'fftmoe.aggregators'"):
        plugged(recipe_values, plugins, federation={"aggregation": "plugin:mine"}, **missing)


@pytest.mark.parametrize("name", ["os.system", "os:system", "plugin:os:system", "plugin:", "plugin:a b", "fft-mo"])
def test_a_recipe_cannot_name_a_module_to_import(name: str, recipe_values: dict[str, Any]):
    with pytest.raises(InputError, match=r"method is .*(did you mean|valid)"):
        parse_recipe({**recipe_values, "method": name}, "here")


def test_plugins_are_refused_where_they_cannot_keep_guarantees(recipe_values: dict[str, Any]):
    def refused(message: str, **sections: Any) -> None:
        with pytest.raises(InputError, match=message):
            parse_recipe(changed(recipe_values, **sections), "here")

    refused("plugin:mine is a plug-in", method="plugin:mine", privacy={})
    refused("plugin:mine is a plug-in", federation={"aggregation": "plugin:mine"}, privacy={})
    refused("robustness hold only .* plugin:mine is", method="plugin:mine", robustness={"aggregator": "median"})
    refused("flora does not aggregate by averaging", method="flora", federation={"aggregation": "plugin:mine"})


def test_flower_refuses_plugins_of_a_script(recipe_values: dict[str, Any]):
    with pytest.raises(InputError, match="entry points of a package"):
        plugged(recipe_values, Plugins(methods={"mine": SameForAll}), method="plugin:mine", engine={"kind": "flower"})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that announces this file's parts, and one that is broken."""
    folder = tmp_path / "site-packages"
    info = folder / "own_parts-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fftmoe.methods]\nsame = own_parts:SameForAll\nbroken = own_parts:absent\n"
        "[fftmoe.partitioners]\nturns = own_parts:in_turn\n"
    )
    shutil.copy(__file__, folder / "own_parts.py")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_installed_plugin_is_found_by_its_name(recipe_values: dict[str, Any], package: Path):
    experiment = plugged(recipe_values, Plugins(), method="plugin:same")
    assert type(experiment.method).__name__ == "SameForAll"
    assert type(experiment.method).__module__ == "own_parts"
    with pytest.raises(InputError, match="announced as 'own_parts:absent', which cannot be imported"):
        plugged(recipe_values, Plugins(), method="plugin:broken")
    with pytest.raises(InputError, match="did you mean 'turns'"):
        plugged(recipe_values, Plugins(), partition={"kind": "plugin:turn"})
    sys.modules.pop("own_parts")


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True], ids=["given", "installed"])
def test_worker_processes_find_plugins_and_give_the_same_bytes(
    installed: bool, recipe_values: dict[str, Any], package: Path, tmp_path: Path
):
    values = changed(recipe_values, method="plugin:same", evaluation={"baselines": "off", "local_only": False})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    plugins = None if installed else Plugins(methods={"same": SameForAll})
    one = fftmoe.run(path, tmp_path / "one", plugins=plugins)
    two = fftmoe.run(path, tmp_path / "two", ["engine.workers=2"], plugins=plugins)
    weights = "adapter/adapter_model.safetensors"
    assert (one.folder / weights).read_bytes() == (two.folder / weights).read_bytes()
    sys.modules.pop("own_parts", None)


def test_a_stopped_run_resumes_with_its_plugins(recipe_values: dict[str, Any], tmp_path: Path):
    values = changed(recipe_values, method="plugin:same", evaluation={"baselines": "off", "local_only": False})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    plugins = Plugins(methods={"same": SameForAll})
    whole = fftmoe.run(path, tmp_path / "whole", plugins=plugins)
    weights = "adapter/adapter_model.safetensors"
    expected = (whole.folder / weights).read_bytes()
    for name in ("summary.json", "report.html"):
        (whole.folder / name).unlink()
    shutil.rmtree(whole.folder / "adapter")
    newest = max((whole.folder / "checkpoints").glob("*.json"))
    newest.unlink()
    with pytest.raises(InputError, match="plugin:same"):
        fftmoe.resume(whole.folder)
    again = fftmoe.resume(whole.folder, plugins=plugins)
    assert (again.folder / weights).read_bytes() == expected


@pytest.mark.parametrize("method", ["same", "own"])
def test_a_custom_method_is_timed_before_training(method: str, recipe_values: dict[str, Any]):
    """A visible run times every tier first."""
    plugins = Plugins(methods={"same": SameForAll, "own": OwnFedIt})
    experiment = plugged(recipe_values, plugins, method=f"plugin:{method}")
    assert seconds_by_tier(experiment, experiment.method.init(experiment.model)).keys() == {"small", "large"}
