"""What follows from the data: the values of the rules for tables of all sizes, and that stated values stay."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fftmoe.config import complete_recipe
from tables import write_csv

TEXTS = ("ash", "bay", "cod")


def completed(folder: Path, rows: int, classes: int = 2, clients: int | None = None, **data: Any) -> Any:
    """The recipe of one line for a table with so many rows, a multiple of five, of which a fifth is for tests."""
    columns = {
        "text": [f"{TEXTS[n % 3]} number {n} is longer than a label" for n in range(rows)],
        "label": [f"l{n % classes}" for n in range(rows)],
        **({"client": [f"c{n % clients}" for n in range(rows)]} if clients else {}),
    }
    write_csv(folder / "a.csv", columns)
    natural = {"partition": {"kind": "natural", "by": "client"}} if clients else {}
    return complete_recipe({"data": {"source": str(folder / "a.csv"), "max_length": 16, **data}, **natural}, "test")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rules")


@given(fifths=st.integers(2, 500), clients=st.integers(2, 7))
@settings(max_examples=23, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_is_about_a_pass_over_an_average_clients_rows(folder: Path, fifths: int, clients: int):
    steps = completed(folder, 5 * fifths, clients=clients).federation.local_steps
    of_a_pass = 4 * fifths / clients / 16
    assert 6 <= steps <= 24
    assert abs(steps - min(24, max(6, of_a_pass))) <= 0.5


@pytest.mark.parametrize(
    ("data", "steps", "clients"),
    [
        ({}, 12, 20),  # 4,000 rows, 200 a client
        ({"train_examples": 2560}, 8, 20),
        ({"validation_examples": 1440}, 8, 20),
        ({"train_examples": 240}, 6, 12),
        ({"train_examples": 9999}, 12, 20),  # more than there are
    ],
)
def test_only_the_rows_that_a_run_uses_count(folder: Path, data: dict[str, int], steps: int, clients: int):
    recipe = completed(folder, 5000, **data)
    assert (recipe.federation.local_steps, recipe.partition.num_clients) == (steps, clients)


@pytest.mark.parametrize(
    ("federation", "every"),
    [
        ({}, 10),
        ({"rounds": 23}, 23),
        ({"patience": "off"}, 10),
        ({"patience": 3}, 2),
        ({"patience": 3, "rounds": 23}, 4),
    ],
)
def test_a_head_is_computed_at_the_end_and_wherever_a_run_may_end(folder: Path, federation: dict[str, Any], every: int):
    write_csv(folder / "head.csv", {"text": [f"{TEXTS[n % 3]} {n}" for n in range(200)], "label": ["a", "b"] * 100})
    recipe, _ = complete_recipe({"data": {"source": str(folder / "head.csv")}, "federation": federation}, "test")
    assert recipe.head is not None
    assert recipe.head.every == every
    assert recipe.validated_every == every


@pytest.mark.parametrize(("classes", "features"), [(2, 1024), (32, 1024), (33, 2048), (77, 2048)])
def test_many_classes_have_more_features(folder: Path, classes: int, features: int):
    head = completed(folder, 385, classes=classes).head
    assert head is not None
    assert head.num_features == features


@pytest.mark.parametrize(("rows", "validation", "keep"), [(85, None, "last"), (90, 0.1, "best")])
def test_rows_are_set_aside_where_clients_have_ten_on_average(folder: Path, rows: int, validation: Any, keep: str):
    recipe = completed(folder, rows, clients=7)
    assert (recipe.data.validation, recipe.evaluation.keep) == (validation, keep)
    assert completed(folder, 90, clients=7, validation="off").evaluation.keep == "last"


def test_nothing_follows_from_data_that_may_not_be_read():
    recipe, chosen = complete_recipe({"data": {"source": "nowhere.csv"}}, "test", may_read=False)
    assert not chosen
    assert (recipe.federation.local_steps, recipe.data.validation, recipe.evaluation.keep) == (12, None, "last")


def test_a_language_model_adapts_all_blocks_and_adds_the_plain_mean():
    texts = {"data": {"source": "nowhere", "targets": ["age"]}, "backbone": {"task": "regression"}}
    language = {"data": {"source": "nowhere"}, "backbone": {"task": "causal-lm"}}
    answers = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    pairs = {"data": {"source": "nowhere", **answers}, "backbone": {"task": "preference"}}
    found = [complete_recipe(values, "test", may_read=False)[0] for values in (texts, language, pairs)]
    assert [recipe.adapter.blocks for recipe in found] == ["last-third", "all", "all"]
    assert [recipe.federation.server_optimizer for recipe in found] == ["momentum", "sgd", "sgd"]
    assert [recipe.federation.learning_rate for recipe in found] == [2e-3, 8e-3, 5e-5]
    assert [recipe.federation.schedule for recipe in found] == ["cosine", "cosine", "constant"]
    assert [recipe.evaluation.every for recipe in found] == [2, 2, 2]


@pytest.mark.parametrize(
    ("stated", "optimizer", "rate"),
    [
        ({}, "adamw", 0.005),
        ({"optimizer": "sgd"}, "sgd", 0.02),
        ({"learning_rate": 0.3}, "sgd", 0.3),
        ({"optimizer": "adamw", "learning_rate": 0.3}, "adamw", 0.3),
    ],
)
def test_the_head_of_numbers_is_not_trained_with_the_rate_of_labels(
    stated: dict[str, Any], optimizer: str, rate: float
):
    stated = {"kind": "averaged", **stated}
    values = {"data": {"source": "nowhere", "targets": ["age"]}, "backbone": {"task": "regression"}, "head": stated}
    head = complete_recipe(values, "test", may_read=False)[0].head
    assert head is not None
    assert (head.kind, head.optimizer, head.learning_rate) == ("averaged", optimizer, rate)
    labels = {"data": {"source": "nowhere", "labels": ["a", "b"]}, "head": stated}
    head = complete_recipe(labels, "test", may_read=False)[0].head
    assert head is not None
    assert head.learning_rate == stated.get("learning_rate", 1.0)


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({}, {"federation.local_steps", "partition.num_clients", "data.max_length"}),
        ({"partition": {"num_clients": 7}}, {"federation.local_steps", "data.max_length"}),
        ({"partition": {"num_clients": 7}, "federation": {"local_steps": 3}}, {"data.max_length"}),
        ({"backbone": {"task": "sequence-classification"}}, {"federation.local_steps", "partition.num_clients"}),
    ],
)
def test_what_is_said_to_follow_from_the_data_does(folder: Path, stated: dict[str, Any], named: set[str]):
    """Of two tables with other rows and texts, what the rules say of both is different, or was not said to follow."""
    write_csv(folder / "few.csv", {"text": ["ash"] * 150, "label": ["a", "b"] * 75})
    write_csv(folder / "many.csv", {"note": ["ash " * 40] * 5000, "kind": [f"l{n % 40}" for n in range(5000)]})
    found = [
        complete_recipe({**stated, "data": {"source": str(folder / f"{name}.csv")}}, "t") for name in ("few", "many")
    ]
    said = [chosen for _, chosen in found]
    for chosen in said:
        assert named <= chosen.keys()
        assert "evaluation.baselines" not in chosen
        assert "backbone.model" not in chosen
        for section, values in stated.items():
            assert not {f"{section}.{key}" for key in values} & chosen.keys()
    few, many = (recipe.model_dump(mode="json") for recipe, _ in found)
    always = {"partition.kind", "backbone.task", "data.validation"}  # the same of both, as neither names its clients
    for key in (said[0].keys() | said[1].keys()) - always:
        section, _, name = key.rpartition(".")
        assert (few[section][name] if section else few[key]) != (many[section][name] if section else many[key]), key


@pytest.mark.parametrize("off", ["off", False])  # as YAML reads a bare off
@pytest.mark.parametrize(
    "key", ["privacy", "robustness", "privacy.examples", "federation.patience", "evaluation.generate"]
)
def test_what_is_off_leaves_the_defaults_of_a_recipe_without_it(key: str, off: Any):
    section, _, name = key.partition(".")
    others: dict[str, Any] = {"data": {"source": "nowhere"}} | (
        {"privacy": {}} if section == "privacy" and name else {}
    )
    stated = others | {section: {name: off} if name else off}
    found, expected = (complete_recipe(values, "test", may_read=False)[0] for values in (stated, others))
    assert found == expected
