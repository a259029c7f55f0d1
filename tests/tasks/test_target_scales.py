"""Regression learns targets of any size: they are scaled inside and answered in the units of the data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError, RunError
from fftmoe.setup.asked import evaluate_run, predict_run
from fftmoe.setup.compose import compose
from fftmoe.setup.deployment import check_deployable
from fftmoe.setup.export import export_run
from fftmoe.setup.finished import load_client
from fftmoe.setup.run import run
from fftmoe.setup.target_scales import to_units
from fftmoe.tasks import Regression, Squares

WORDS = ("ash", "bay", "cod", "dew", "elm")
Runs = dict[tuple[float, float], Path]
UNITS = [(1.0, 0.0), (1e6, 0.0), (1e-6, 0.0), (1e3, 5e4), (1.0, 1e6)]  # y is written as a * y + b


def write_rows(folder: Path, a: float, b: float, constant: bool = False) -> Path:
    """Texts of words; the target is how often one of them occurs, in units of `a` from `b`; the other is constant."""
    folder.mkdir(exist_ok=True)
    for split, size in (("train", 61), ("test", 31)):
        draws = np.random.default_rng(len(split))
        with (folder / f"{split}.jsonl").open("w") as file:
            for _ in range(size):
                words = draws.choice(WORDS, int(draws.integers(2, 7))).tolist()
                y = 0.0 if constant else float(words.count("elm"))
                file.write(json.dumps({"text": " ".join(words), "elms": a * y + b, "same": 7.0}) + "\n")
    return folder


def recipe_of(recipe_values: dict[str, Any], folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(recipe_values))
    values["backbone"]["task"] = "regression"
    values["data"] = {"source": str(folder), "max_length": 13, "targets": ["elms", "same"]}
    values |= {"head": {"kind": "averaged", "learning_rate": 0.1}, "trackers": [], "evaluation": {"baselines": "off"}}
    values["partition"] = {"kind": "iid", "num_clients": 7}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values[section], name: value} if name else value
    return values


@pytest.fixture(scope="module")
def finished(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same run in every unit."""
    folders = {}
    for a, b in UNITS:
        top = tmp_path_factory.mktemp("units")
        recipe = recipe_of(recipe_values, write_rows(top / "rows", a, b), federation__rounds=4)
        run(parse_recipe(recipe, "units"), top / "run")
        folders[a, b] = top / "run"
    return folders


@pytest.mark.parametrize(("a", "b"), UNITS)
def test_a_run_in_other_units_is_the_same_run(finished: Runs, a: float, b: float):
    """Scaled targets differ in their last bits only; AdamW can make more of that than the last bits of a model."""
    first, other = (json.loads((finished[unit] / "summary.json").read_text()) for unit in (UNITS[0], (a, b)))
    texts = ["elm elm elm", "ash", "bay elm"]
    plain, moved = (
        np.array([row["values"]["elms"] for row in predict_run(finished[unit], texts)]) for unit in (UNITS[0], (a, b))
    )
    # Outputs are float32: a number next to b is rounded to a multiple of its last place.
    steps = np.abs(moved).max() * np.finfo(np.float32).eps / abs(a)
    np.testing.assert_allclose((moved - b) / a, plain, atol=1e-3 + steps)
    assert other["r2"] == pytest.approx(first["r2"], abs=2e-2)
    measured = evaluate_run(finished[a, b])
    assert not any(key.endswith("_by_label") for key in measured)  # nothing divides these rows
    assert measured["mean_absolute_error"] == pytest.approx(other["mean_absolute_error"], rel=1e-3, abs=steps * abs(a))


def test_a_constant_target_is_answered_exactly(finished: Runs):
    for folder in finished.values():
        for row in predict_run(folder, ["elm", "ash bay"]):
            assert row["values"]["same"] == pytest.approx(7.0, abs=0.2)


def test_the_model_of_a_client_and_an_export_answer_in_units(finished: Runs, tmp_path: Path):
    folder = finished[1e6, 0.0]
    whole = predict_run(folder, ["elm elm elm"])[0]["values"]["elms"]
    assert 1e5 < whole < 1e7
    own = predict_run(folder, ["elm elm elm"], client=6)[0]["values"]["elms"]
    assert 1e5 < own < 1e7
    head = load_client(folder, 6).trained.model.get_submodule("base_model.model.classifier")
    assert float(head.modules_to_save["default"].bias[0].detach()) > 1e4
    export_run(folder, "personal", tmp_path / "small", {"tier": "small"})
    (saved,) = (tmp_path / "small").glob("**/adapter_model.safetensors")
    biases = [tensor for name, tensor in load_file(saved).items() if name.endswith("classifier.bias")]
    assert float(biases[0][0]) > 1e4


@pytest.mark.parametrize("pooling", ["mean", "native"])
def test_all_constant_targets_are_learned(recipe_values: dict[str, Any], tmp_path: Path, pooling: str):
    recipe = recipe_of(recipe_values, write_rows(tmp_path / "rows", 1.0, 3.0, constant=True), backbone__pooling=pooling)
    summary = run(parse_recipe(recipe, "constant"), tmp_path / "run").summary
    assert summary["mean_absolute_error"] < 3
    assert np.isfinite(summary["r2"])


@pytest.mark.parametrize(("a", "b", "is_told_apart"), [(1.0, 1e6, True), (1.0, 1.7e12, False), (1e6, 1.7e12, True)])
def test_targets_that_a_saved_head_cannot_tell_apart_are_refused(
    recipe_values: dict[str, Any], tmp_path: Path, a: float, b: float, is_told_apart: bool
):
    """Times in milliseconds within a minute: the run measured them scaled, and every answer was the same number."""
    recipe = parse_recipe(recipe_of(recipe_values, write_rows(tmp_path / "rows", a, b)), "times")
    if is_told_apart:
        compose(recipe)
        return
    with pytest.raises(InputError, match=r"'elms' lie around 1.7e\+12 and differ by about .*subtract a number"):
        compose(recipe)


# The parts


@pytest.mark.parametrize("scales", [(), ((0.0, 1.0),), ((5.0, 2.0),), ((-3e6, 1e5),)])
def test_the_loss_and_the_metrics_are_those_of_their_definition(scales: Any):
    centre, scale = scales[0] if scales else (0.0, 1.0)
    outputs = torch.tensor([[0.5], [-1.25], [2.0]])
    targets = centre + scale * torch.tensor([[0.25], [-1.0], [4.0]], dtype=torch.float64)
    loss = float(Squares(scales).loss(outputs, targets))
    assert loss == pytest.approx((0.25**2 + 0.25**2 + 2.0**2) / 3, rel=1e-6)
    sums = Regression(scales).statistics(outputs, {"labels": targets}).numpy().sum(0)
    found = Regression(scales).metrics(sums)
    assert float(found["mean_absolute_error"]) == pytest.approx(scale * 2.5 / 3)
    assert float(found["mean_squared_error"]) == pytest.approx(scale**2 * (0.125 + 4) / 3)


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ([[0, 1]], "1 pair for 2 data.targets"),
        ([[0, 0], [0, 1]], "the second above 0"),
        ([[0, -1], [0, 1]], "the second above 0"),
        ([[float("nan"), 1], [0, 1]], "it must be a finite number"),
        ([[0], [0, 1]], "at least 2 items"),
    ],
)
def test_scales_that_are_no_scales_are_refused(recipe_values: dict[str, Any], tmp_path: Path, scales: Any, words: str):
    with pytest.raises(InputError, match=words):
        parse_recipe(recipe_of(recipe_values, tmp_path, data__target_scales=scales), "wrong")


@pytest.mark.parametrize("scales", ["none", [[0, 100], [7, 1]]])
def test_where_the_scale_would_come_from_clients_it_must_be_written(
    recipe_values: dict[str, Any], tmp_path: Path, scales: Any
):
    """A server of sites has no training rows, and differential privacy does not cover what they tell."""
    private = {"privacy": {"epsilon": 8.0, "delta": 1e-3, "clip_norm": 1.0, "min_contributors": 2}}
    private["adapter"] = {**recipe_values["adapter"], "residents": "balanced"}
    sites = {"partition": {"kind": "natural", "by": "author"}}
    written = parse_recipe(recipe_of(recipe_values, tmp_path, **sites, data__target_scales=scales), "written")
    check_deployable(written)
    parse_recipe(recipe_of(recipe_values, tmp_path, **private, data__target_scales=scales), "written")
    with pytest.raises(InputError, match=r"data\.target_scales="):
        check_deployable(parse_recipe(recipe_of(recipe_values, tmp_path, **sites), "auto"))
    with pytest.raises(InputError, match=r"data\.target_scales="):
        parse_recipe(recipe_of(recipe_values, tmp_path, **private), "auto")


def test_a_head_that_is_too_large_in_units_is_not_saved(recipe_values: dict[str, Any], tmp_path: Path):
    values = recipe_of(recipe_values, write_rows(tmp_path / "rows", 1.0, 0.0), head__learning_rate=0.1)
    model: Any = compose(parse_recipe(values, "units")).model
    to_units(model, ((0.0, 1e30), (0.0, 1.0)))
    with pytest.raises(RunError, match="beyond float32 in the units of the targets"):
        to_units(model, ((0.0, 1e30), (0.0, 1.0)))
