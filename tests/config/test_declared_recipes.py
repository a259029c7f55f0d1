"""What a recipe with differential privacy must say itself, one value at a time."""

from types import SimpleNamespace
from typing import Any

import pytest

from fftmoe.config.declared import LABELLED, check_declared

FITTING: dict[str, Any] = {
    "method": "fft-moe",
    "backbone.task": LABELLED[0],
    "data.labels": ["no", "yes"],
    "data.target_scales": "auto",
    "data.validation": None,
    "data.validation_examples": None,
    "partition.kind": "iid",
    "evaluation.personal": False,
    "evaluation.local_only": False,
    "federation.local_steps": None,
    "budgets": [],
}


def checked(differential: bool = True, personal: bool = False, **changes: Any) -> None:
    """Check a recipe of these values; `data__labels` changes `data.labels`."""
    recipe: Any = SimpleNamespace()
    for key, value in {**FITTING, **{name.replace("__", "."): own for name, own in changes.items()}}.items():
        section, _, name = key.partition(".")
        if not name:
            setattr(recipe, section, value)
            continue
        if not hasattr(recipe, section):
            setattr(recipe, section, SimpleNamespace())
        setattr(getattr(recipe, section), name, value)
    privacy: Any = SimpleNamespace(differential=differential)
    method: Any = SimpleNamespace(personal=personal)
    check_declared(recipe, privacy, method)


def tier(gflops: float | None = None, deadline: float | None = None) -> Any:
    return SimpleNamespace(name="small", gflops=gflops, deadline_seconds=deadline)


REGRESSION = {"backbone__task": "regression", "data__labels": None}
REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"backbone__task": task, "data__labels": None}, "the names of the labels must not come from")
        for task in LABELLED
    ),
    (REGRESSION, "the scales of the targets must not come from clients' rows"),
    ({"personal": True}, "method fft-moe has no global model"),
    ({"evaluation__personal": True}, "evaluation.personal measures clients' own models"),
    ({"evaluation__local_only": True}, "evaluation.local_only measures clients' own models"),
    (
        {"data__validation_examples": 5, "partition__kind": "natural"},
        "data.validation_examples measures exactly on rows of clients",
    ),
    ({"data__validation": 0.1}, "data.validation measures exactly on rows of clients"),
    ({"budgets": [tier(), tier(gflops=1.0)]}, "tier 'small' has a limit on compute"),
    ({"budgets": [tier(deadline=1.0)]}, "tier 'small' has a limit on compute"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_clients_rows_would_decide_is_refused(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        checked(**changes)
    checked(differential=False, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone__task": "causal-lm", "data__labels": None},
        {**REGRESSION, "data__target_scales": "none"},
        {**REGRESSION, "data__target_scales": [[0.0, 1.0]]},
        {"data__validation_examples": 5},
        {"partition__kind": "natural"},
        {"budgets": [tier()]},
        {"budgets": [tier(gflops=1.0), tier(deadline=1.0)], "federation__local_steps": 3},
    ],
)
def test_what_the_recipe_says_itself_passes(changes: dict[str, Any]):
    checked(**changes)
