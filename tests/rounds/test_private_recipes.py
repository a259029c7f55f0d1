"""Recipes of private runs that are refused, and what a person reads."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.config import parse_recipe
from fftmoe.errors import InputError
from fftmoe.setup.compose import compose
from private_runs import NOISY, SUMS, PrivateRecipe, RunPrivate


@pytest.mark.parametrize(
    ("method", "privacy", "changes", "reason"),
    [
        ("hetlora", SUMS, {}, "weighs every client by the norm"),
        ("flora", SUMS, {}, "hands the factors of every client to all others"),
        ("flexlora", SUMS, {}, "multiplies the factors of every client"),
        ("flame", SUMS, {}, "by the experts that its data activated"),
        ("local-only", SUMS, {}, "sends nothing that privacy could protect"),
        ("centralized", SUMS, {}, "has all data in one place"),
        ("fft-moe", SUMS, {"adapter.residents": "personal"}, "use adapter.residents=balanced"),
        ("fft-moe", SUMS, {"federation.activation_power": 1.0}, "weighs clients by their routing"),
        ("fft-moe", {"min_contributors": 4}, {}, "no round could change anything; lower the first"),
        ("fft-moe-solved-head", NOISY, {}, "use head.kind=averaged or one-vs-all"),
        ("fft-moe", NOISY, {"federation.over_selection": 1}, "leave federation.over_selection out"),
        ("fft-moe", {"epsilon": 1.0}, {}, "needs privacy.clip_norm, .* and privacy.delta"),
        ("fft-moe", {"delta": 0.1}, {}, "belong to differential privacy"),
        ("fft-moe", {"clip_quantile": 0.5}, {}, "belong to differential privacy"),
        ("fft-moe", {**NOISY, "noise_multiplier": 0.2}, {}, "privacy.noise_multiplier: .* 0.3"),
        ("fft-moe", {"epsilom": 1.0}, {}, "unknown key 'privacy.epsilom'; did you mean 'epsilon'"),
        ("fft-moe", None, {}, "privacy: it is empty; write `privacy: {}` for sums only, or `privacy: off`"),
    ],
)
def test_a_recipe_that_cannot_be_private_is_refused(
    private_recipe: PrivateRecipe, method: str, privacy: Any, changes: Any, reason: str
):
    with pytest.raises(InputError, match=reason):
        parse_recipe(private_recipe(method, privacy, **changes), "tiny")


EXAMPLES = {"examples": {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}}
SWITCH = {"adapter.balance": "switch"}


@pytest.mark.parametrize("privacy", [NOISY, EXAMPLES])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data.labels": None}, r"names of the labels must not come from clients' rows.*data.labels=\["),
        ({"data.labels": None, "backbone.task": "multi-label-classification"}, "names of the labels must not come"),
        ({"evaluation": {"baselines": "off", "personal": True}}, "set evaluation.personal=false"),
        ({"evaluation": {"baselines": "off", "local_only": True}}, "set evaluation.local_only=false"),
        ({"data.validation": 0.2}, "set data.validation=off"),
        (
            {"data.validation_examples": 5, "partition": {"kind": "natural", "by": "author", "num_clients": 4}},
            "data.validation_examples measures exactly",
        ),
    ],
)
def test_what_would_follow_from_clients_data_is_declared_or_refused(
    private_recipe: PrivateRecipe, privacy: Any, changes: Any, reason: str
):
    """The same recipe is allowed where the server keeps only sums, which promises nothing about the results."""
    with pytest.raises(InputError, match=reason):
        parse_recipe(private_recipe("head-only", privacy, **SWITCH, **changes), "tiny")
    parse_recipe(private_recipe("head-only", SUMS, **SWITCH, **changes), "tiny")


@pytest.mark.parametrize("privacy", [NOISY, EXAMPLES])
def test_a_method_without_a_global_model_is_refused(private_recipe: PrivateRecipe, privacy: Any):
    with pytest.raises(InputError, match="method fedsa-lora has no global model"):
        parse_recipe(private_recipe("fedsa-lora", privacy), "tiny")
    parse_recipe(private_recipe("fedsa-lora", SUMS), "tiny")


def test_the_number_of_clients_is_declared(private_recipe: PrivateRecipe):
    """It decides the sampling rate. In a deployment it is the list of sites."""
    natural = {"partition": {"kind": "natural", "by": "author"}}
    with pytest.raises(InputError, match=r"must not come from their rows.*partition\.num_clients"):
        compose(parse_recipe(private_recipe("head-only", NOISY, **natural), "tiny"))
    natural["partition"]["num_clients"] = 4  # type: ignore[assignment]
    assert compose(parse_recipe(private_recipe("head-only", NOISY, **natural), "tiny")).num_clients == 4


def test_a_tier_is_not_derived_from_the_length_or_the_number_of_clients_texts(private_recipe: PrivateRecipe):
    """What a limit on compute affords follows from the recipe alone."""
    limited = [{"name": "only", "fraction": 1.0, "experts": 3, "gflops": 0.0008}]
    epochs = {"federation.local_steps": None, "federation.local_epochs": 1}
    with pytest.raises(InputError, match=r"tier 'only' has a limit on compute.*set federation\.local_steps"):
        parse_recipe(private_recipe("fft-moe", NOISY, budgets=limited, **epochs), "tiny")
    composed = compose(parse_recipe(private_recipe("fft-moe", NOISY, budgets=limited), "tiny"))
    assert composed.mean_tokens == composed.recipe.data.max_length
    plain = compose(parse_recipe(private_recipe("fft-moe", SUMS, budgets=limited), "tiny"))
    assert plain.mean_tokens < composed.mean_tokens
    assert plain.tiers[0].top_k > composed.tiers[0].top_k >= 1


def test_a_private_run_measures_nothing_on_the_labels_of_single_clients(run_private: RunPrivate):
    assert "reweighted_accuracy" not in run_private("run", "head-only", NOISY).summary
    assert "reweighted_accuracy" in run_private("sums", "head-only", SUMS).summary


@pytest.mark.parametrize("off", ["off", False])
def test_privacy_can_be_off_and_stays_so(private_recipe: PrivateRecipe, off: Any):
    recipe = parse_recipe(private_recipe("fft-moe", off), "tiny")
    assert recipe.privacy is None
    dumped = recipe.model_dump(mode="json")
    assert dumped["privacy"] == "off"
    assert parse_recipe(dumped, "again") == recipe
    private = parse_recipe(private_recipe("fft-moe", NOISY), "tiny")
    assert parse_recipe(private.model_dump(mode="json"), "again") == private


@pytest.mark.parametrize(
    ("privacy", "reason"),
    [
        ({**NOISY, "delta": 0.2}, "would allow the run to reveal one of 5 clients entirely; set it well below 0.2"),
        ({**NOISY, "epsilon": 0.01}, "a single round costs an epsilon of .* raise privacy.noise_multiplier"),
    ],
)
def test_an_unsuitable_population_is_refused_before_anything_is_written(
    run_private: RunPrivate, tmp_path: Path, privacy: dict[str, Any], reason: str
):
    with pytest.raises(InputError, match=reason):
        run_private("run", "fft-moe", privacy)
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_reported_before_anything_is_written(
    run_private: RunPrivate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting.pld", None)
    with pytest.raises(InputError, match=r"pip install 'fftmoe\[dp\]'"):
        run_private("run", "fft-moe", NOISY)
    assert not (tmp_path / "run").exists()
    run_private("sums", "fft-moe", SUMS)


def test_a_run_states_its_privacy_guarantee(
    recipe_values: dict[str, Any], private_recipe: PrivateRecipe, tmp_path: Path, cli: Any
):
    path = tmp_path / "private.yaml"
    path.write_text(yaml.safe_dump(private_recipe("fft-moe", NOISY)))
    outcome = cli("run", path, "--output", tmp_path / "run")
    assert outcome.status == 0
    assert "Noise and cohorts come from the operating system: a second run has other bytes" in outcome.out
    assert "  epsilon " in outcome.out
