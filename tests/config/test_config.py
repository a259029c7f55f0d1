"""Recipes: what is shipped parses, what is wrong is named with its place, its value and the remedy."""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import HeadSection, Recipe, load_recipe, parse_recipe
from fftmoe.config.engine import EngineSection
from fftmoe.errors import InputError
from fftmoe.setup.tiers import training_of


def head_of(recipe: Recipe) -> HeadSection:
    assert recipe.head is not None
    return recipe.head


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of the recipe with `a.b` set."""
    values = copy.deepcopy(values)
    *parents, last = key.split(".")
    node: Any = values
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node[parent]
    node[last] = value
    return values


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        parse_recipe(values, "mine.yaml")
    message = str(error.value)
    assert message.startswith("recipe mine.yaml: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "path", "near"),
    [
        ("sed", "sed", "seed"),
        ("backbone.modle", "backbone.modle", "model"),
        ("data.max_lenght", "data.max_lenght", "max_length"),
        ("partition.alpa", "partition.alpa", "alpha"),
        ("adapter.num_expert", "adapter.num_expert", "num_experts"),
        ("head.learning_rat", "head.learning_rat", "learning_rate"),
        ("budgets.1.topk", "budgets.1.topk", "top_k"),
        ("federation.round", "federation.round", "rounds"),
        ("engine.worker", "engine.worker", "workers"),
        ("evaluation.evry", "evaluation.evry", "every"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_valid_one(
    recipe_values: dict[str, Any], key: str, path: str, near: str
):
    assert f"unknown key '{path}'; did you mean '{near}'?" in refusal(changed(recipe_values, key, 1))


@pytest.mark.parametrize(("value", "means"), [(None, "none"), ("none", "none"), ("auto", "auto"), ("2e3", 2000.0)])
def test_the_bound_of_updates_is_a_number_or_a_word(recipe_values: dict[str, Any], value: Any, means: Any):
    """The recipes of older runs say null."""
    recipe = parse_recipe(changed(recipe_values, "federation.max_update_norm", value), "tiny")
    assert recipe.federation.max_update_norm == means
    assert parse_recipe(recipe_values, "tiny").federation.max_update_norm == "auto"


@pytest.mark.parametrize("value", ["off", False])  # as YAML reads a bare off
@pytest.mark.parametrize(
    ("key", "means"),
    [
        ("data.validation", None),
        ("evaluation.keep", "last"),
        ("evaluation.baselines", None),
        ("evaluation.generate", None),
        ("federation.patience", None),
        ("federation.clip_gradients", None),
        ("federation.schedule", "constant"),
        ("federation.warmup_rounds", 0),
        ("federation.max_update_norm", "none"),
        ("start_from", None),
    ],
)
def test_what_keeps_and_steers_rounds_is_switched_off_by_one_word(
    recipe_values: dict[str, Any], key: str, means: Any, value: Any
):
    recipe: Any = parse_recipe(changed(recipe_values, key, value), "tiny")
    for name in key.split("."):
        recipe = getattr(recipe, name)
    assert recipe == means


@pytest.mark.parametrize("value", ["sometimes", 0, -1.0, True, float("nan")])
def test_another_bound_of_updates_is_refused(recipe_values: dict[str, Any], value: Any):
    message = refusal(changed(recipe_values, "federation.max_update_norm", value))
    assert "federation.max_update_norm" in message
    assert "auto" in message


@pytest.mark.parametrize(
    ("key", "value", "now"),
    [
        ("engine.clients_at_once", 2, "clients_per_batch"),
        ("federation.average_decay", 0.5, "ema_decay"),
        ("federation.spare_clients", 1, "over_selection"),
        ("head.update", "resolved", "recomputed"),
    ],
)
def test_a_former_name_is_refused_with_the_present_one(recipe_values: dict[str, Any], key: str, value: Any, now: str):
    message = refusal(changed(recipe_values, key, value))
    assert key in message
    assert f"; did you mean '{now}'?" in message
    assert message.count("did you mean") == 1


def test_an_unknown_key_that_is_near_none_lists_the_valid_ones(recipe_values: dict[str, Any]):
    message = refusal(changed(recipe_values, "engine.zzz", 1))
    valid = ", ".join(sorted(EngineSection.model_fields))
    assert f"unknown key 'engine.zzz'; valid: {valid}" in message


def test_a_key_of_another_section_is_not_suggested(recipe_values: dict[str, Any]):
    message = refusal(changed(recipe_values, "engine.rounds", 1))
    assert "did you mean" not in message


def test_a_missing_key_is_named(recipe_values: dict[str, Any]):
    values = copy.deepcopy(recipe_values)
    del values["adapter"]["num_experts"], values["head"]
    message = refusal(values)
    assert "missing key 'adapter.num_experts'" in message
    assert "missing key 'head'" in message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", "one", ("seed:", "'one'")),
        ("seed", 1.5, ("seed:", "1.5")),
        ("adapter.num_experts", 0, ("adapter.num_experts:", "(value: 0)")),
        ("adapter.blocks", "first-2", ("adapter.blocks", "'first-2'")),
        ("adapter.explore", "maybe", ("adapter.explore:", "'maybe'")),
        ("federation.learning_rate", "fast", ("federation.learning_rate:", "'fast'")),
        ("federation.learning_rate", -1, ("federation.learning_rate:", "-1")),
        ("federation.server_beta1", 1.5, ("federation.server_beta1:", "1.5")),
        ("budgets.0.top_k", "two", ("budgets.0.top_k:", "'two'")),
        ("budgets", [], ("budgets:", "at least 1")),
        ("trackers", "tensorboard", ("trackers:", "'tensorboard'")),
        ("backbone.model", 7, ("backbone.model:", "7")),
        ("backbone", "builtin:minilm", ("backbone:", "'builtin:minilm'")),
    ],
)
def test_a_wrong_value_is_named_with_its_key(
    recipe_values: dict[str, Any], key: str, value: Any, words: tuple[str, ...]
):
    message = refusal(changed(recipe_values, key, value))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("partition.kind", "dirichelt", "dirichlet"),
        ("method", "fftmoe", "fft-moe"),
        ("method", "fedsalora", "fedsa-lora"),
        ("method", "flex-lora", "flexlora"),
        ("method", "localonly", "local-only"),
        ("backbone.task", "image-clasification", "image-classification"),
        ("head.update", "freeze", "frozen"),
        ("head.features", "forier", "fourier"),
        ("adapter.router", "share", "shared"),
        ("head.kind", "one-vs-al", "one-vs-all"),
        ("federation.aggregation", "fed-avg", "fedavg"),
    ],
)
def test_an_unknown_choice_names_the_nearest(recipe_values: dict[str, Any], key: str, value: str, near: str):
    assert f"{key} is '{value}'; did you mean '{near}'?" in refusal(changed(recipe_values, key, value))


CLOSED = {"kind": "closed-form"}


@pytest.mark.parametrize("head", [CLOSED, {**CLOSED, "update": "frozen"}, {**CLOSED, "features": "fourier"}])
def test_a_closed_form_head_needs_no_learning_rate(recipe_values: dict[str, Any], head: dict[str, Any]):
    recipe = parse_recipe(changed(recipe_values, "head", head), "mine.yaml")
    assert head_of(recipe).learning_rate is None
    assert not head_of(recipe).trained


@pytest.mark.parametrize("head", [{"kind": "averaged"}, {"kind": "one-vs-all"}, {**CLOSED, "update": "trained"}])
def test_a_head_that_clients_train_needs_a_learning_rate(recipe_values: dict[str, Any], head: dict[str, Any]):
    message = refusal(changed(recipe_values, "head", head))
    assert f"head: a head of kind {head['kind']} that clients train needs head.learning_rate, e.g. 1.0" in message
    own = parse_recipe(changed(recipe_values, "head", {**head, "learning_rate": 0.5}), "mine.yaml")
    assert head_of(own).trained


def test_local_only_has_no_closed_form_head(recipe_values: dict[str, Any]):
    values = changed(recipe_values, "method", "local-only")
    for update in ("frozen", "recomputed"):
        message = refusal(changed(values, "head", {**CLOSED, "update": update}))
        assert "local-only shares no feature statistics" in message
        assert "head.kind=averaged" in message
    assert parse_recipe(values, "mine.yaml").method == "local-only"


def test_head_only_computes_a_closed_form_head_once(recipe_values: dict[str, Any]):
    values = changed(recipe_values, "method", "head-only")
    message = refusal(changed(values, "head", CLOSED))
    assert "head-only changes no features" in message
    assert "head.update=frozen" in message
    for update in ("frozen", "trained"):
        head = {**CLOSED, "update": update, "learning_rate": 0.5}
        assert head_of(parse_recipe(changed(values, "head", head), "mine.yaml")).update == update


@pytest.mark.parametrize(
    ("key", "value"), [("adapter.shared_dim", -1), ("head.every", 0), ("head.num_features", 0), ("lora.scale", 0.0)]
)
def test_sizes_are_positive(recipe_values: dict[str, Any], key: str, value: Any):
    values = copy.deepcopy(recipe_values) | {"lora": {}}
    message = refusal(changed(values, key, value))
    assert f"{key}:" in message
    assert f"(value: {value})" in message


def numbers_in(values: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of all numbers."""
    if isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in items:
            yield from numbers_in(value, f"{path}.{name}" if path else str(name))
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield path


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), ".inf", "nan", "1e400", "\u0661"])
def test_every_number_of_a_recipe_is_finite_and_written_in_ascii(recipe_values: dict[str, Any], value: Any):
    """An infinite rate was accepted, and ended a run in the middle; `float` also reads the digits of other scripts."""
    optional = {"memory_mib": 3.0, "uplink_mib": 3.0, "gflops_per_second": 3.0, "deadline_seconds": 3.0}
    values = parse_recipe(recipe_values, "mine.yaml").model_dump(mode="json")
    values["budgets"][0] |= optional
    values["federation"] |= {"clip_gradients": 3.0, "max_update_norm": 3.0}
    keys = list(numbers_in(values))
    assert {"federation.learning_rate", "budgets.0.memory_mib", "federation.max_update_norm"} < set(keys)
    for key in keys:
        assert f"{key}:" in refusal(changed(values, key, value)) or key == "seed", key


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("dirichlet", "alpha", 0.0),
        ("dirichlet", "alpha", float("nan")),
        ("dirichlet", "alpha", float("inf")),
        ("dirichlet", "alpha", 1e31),
        ("shards", "shards_per_client", 0),
        ("bernoulli-dirichlet", "holder_fraction", 0.0),
        ("bernoulli-dirichlet", "holder_fraction", 1.5),
        ("iid", "num_clients", 0),
        ("iid", "min_examples", 0),
    ],
)
def test_a_parameter_of_the_partition_is_in_its_range(recipe_values: dict[str, Any], kind: str, key: str, value: Any):
    values = {**recipe_values, "partition": {"kind": kind, "num_clients": 7, key: value}}
    message = refusal(values)
    assert re.search(f"partition.{key}: (Input should|it must) be ", message)
    assert f"(value: {value})" in message


@pytest.mark.parametrize(
    ("lengths", "reason"),
    [
        ({}, "neither local_epochs nor local_steps is set; set one of them"),
        ({"local_epochs": 1, "local_steps": 3}, "local_epochs=1 and local_steps=3 exclude each other; remove one"),
    ],
)
def test_local_training_has_exactly_one_length(recipe_values: dict[str, Any], lengths: dict[str, int], reason: str):
    values = copy.deepcopy(recipe_values)
    del values["federation"]["local_steps"]
    values["federation"] |= lengths
    assert f"federation: {reason}" in refusal(values)


OTHER_TRAINING = {
    "batch_size": 7,
    "learning_rate": 0.5,
    "local_steps": 11,
    "group_by_length": False,
    "weight_decay": 0.25,
    "proximal": 0.125,
    "clip_gradients": 0.375,
    "upload": "int8",
}


@pytest.mark.parametrize("key", OTHER_TRAINING)
def test_what_a_recipe_says_of_local_training_is_what_clients_do(recipe_file: Path, key: str):
    plain = training_of(load_recipe(recipe_file))
    value = OTHER_TRAINING[key]
    assert getattr(plain, key) != value
    assert training_of(load_recipe(recipe_file, [f"federation.{key}={value}"])) == replace(plain, **{key: value})


def test_a_number_without_a_dot_is_a_number(recipe_file: Path):
    # YAML 1.1 reads both as text.
    recipe = load_recipe(recipe_file, ["federation.learning_rate=2e-3", "partition.alpha=1E2"])
    assert recipe.federation.learning_rate == 0.002
    assert recipe.partition.alpha == 100.0


def test_a_cohort_above_the_population_is_refused(recipe_values: dict[str, Any]):
    message = refusal(changed(recipe_values, "federation.clients_per_round", 8))
    assert "clients_per_round=8 is above partition.num_clients=7; lower it to 7" in message


def test_two_tiers_of_one_name_are_refused(recipe_values: dict[str, Any]):
    assert "have the same name (small, small)" in refusal(changed(recipe_values, "budgets.1.name", "small"))


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        ({"top_k": 1}, "has no number of experts; set `experts`, or a limit"),
        ({"experts": 2}, "has no number of experts per token; set `top_k`, or a limit"),
        ({"experts": 2, "deadline_seconds": 1.0}, "belong together"),
        ({"experts": 2, "top_k": 1, "gflops_per_second": 1.0}, "belong together"),
    ],
)
def test_a_tier_states_or_limits_both_its_numbers(recipe_values: dict[str, Any], tier: dict[str, Any], words: str):
    message = refusal(changed(recipe_values, "budgets", [{"name": "a", "fraction": 1.0, **tier}]))
    assert words in message
    assert "budgets.0:" in message


def test_a_tier_may_give_only_limits(recipe_values: dict[str, Any]):
    tier = {"name": "a", "fraction": 1.0, "memory_mib": 1, "deadline_seconds": 2, "gflops_per_second": 3}
    recipe = parse_recipe(changed(recipe_values, "budgets", [tier]), "mine.yaml")
    assert recipe.budgets[0].experts is None


@pytest.mark.parametrize("blocks", ["all", "last-2", [0, 2]])
def test_blocks_take_three_forms(recipe_values: dict[str, Any], blocks: Any):
    assert parse_recipe(changed(recipe_values, "adapter.blocks", blocks), "x").adapter.blocks == blocks


def test_flora_cannot_round_its_uploads(recipe_values: dict[str, Any]):
    values = changed(recipe_values, "federation", {**recipe_values["federation"], "upload": "int8"})
    assert "method flora starts each round with new factors" in refusal({**values, "method": "flora"})
    assert parse_recipe(values, "mine.yaml").federation.upload == "int8"
