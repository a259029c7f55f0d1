"""The server's part of a federation over sites: it holds the recipe and test examples, and no site's data."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fftmoe.backbones import fingerprint
from fftmoe.config import Recipe
from fftmoe.data import Partition, Ragged, Wanted
from fftmoe.errors import InputError
from fftmoe.server.screening import MOST_EXAMPLES
from fftmoe.setup.compose import Experiment, assemble
from fftmoe.setup.load import Loaded, agreed_labels, load_splits


@dataclass(frozen=True)
class Profile:
    """What a site says of itself before the first round.

    Attributes:
        site: its name. client_id: its place among the clients.
        tier: the name of its budget in the recipe.
        num_examples: that it trains on.
        backbone: the fingerprint of the one that it has.
    """

    site: str
    client_id: int
    tier: str
    num_examples: int
    backbone: str


def load_server(recipe: Recipe) -> Loaded:
    """The test examples and the labels that everyone agrees on: the recipe's `data.labels`, or those of the test rows.

    Raises:
        InputError: the recipe cannot be run over sites, or the test examples cannot be read.
    """
    _check(recipe)
    found = load_splits(recipe, recipe.data.source, Wanted(("test",), agreed_labels(recipe)))
    test = found.examples["test"]
    return Loaded(test.select([]), test, found.label_names, None, found.max_length, found.strata)


def compose_deployed(recipe: Recipe, data: Loaded, profiles: Sequence[Profile]) -> Experiment:
    """The experiment that the server runs over these sites, one each of the clients 0, 1, ….

    Raises:
        InputError: as `compose`; a site's budget is none of the recipe's, or its backbone is another than the server's.
    """
    names = [budget.name for budget in recipe.budgets]
    for profile in profiles:
        if profile.tier not in names:
            raise InputError(f"site {profile.site} has budget {profile.tier!r}; the recipe has {', '.join(names)}")
    ordered = sorted(profiles, key=lambda profile: profile.client_id)
    assert [profile.client_id for profile in ordered] == list(range(len(ordered)))
    nothing = Ragged(np.empty(0, dtype=np.int64), np.zeros(len(ordered) + 1, dtype=np.int64))
    partition = Partition(nothing, tuple(profile.site for profile in ordered))
    tier_of = np.array([names.index(profile.tier) for profile in ordered])
    sizes = np.array([profile.num_examples for profile in ordered])
    experiment = assemble(recipe, data, partition, tier_of, sizes, remote=True)
    _check_backbones(ordered, fingerprint(experiment.model))
    return experiment


def job_of(recipe: Mapping[str, Any], label_names: Sequence[str], run: str) -> dict[str, Any]:
    """What sites need to know: the recipe as it was read, the labels in the order of the logits, and the run's name."""
    return {"recipe": dict(recipe), "labels": list(label_names), "run": run}


def _check_backbones(profiles: Sequence[Profile], own: str) -> None:
    other = [f"{profile.site} ({profile.backbone})" for profile in profiles if profile.backbone != own]
    if other:
        raise InputError(
            f"the backbone of site {', '.join(other)} is not the server's ({own}): other weights, another "
            "configuration, or a damaged file; give the site the same model, with --model where it has it elsewhere"
        )


def _check(recipe: Recipe) -> None:
    """Refuse what only a machine with everyone's data can do."""
    asked = {
        "evaluation.personal": recipe.evaluation.personal,
        "evaluation.local_only": recipe.evaluation.local_only,
        "data.train_examples": recipe.data.train_examples is not None,
        "data.validation_examples": recipe.data.validation_examples is not None,
        "data.test_examples": recipe.data.test_examples is not None,
        "method=centralized": recipe.method == "centralized",
        f"method={recipe.method}, which has no global model": recipe.method in ("local-only", "fedsa-lora"),
    }
    wrong = [name for name, is_asked in asked.items() if is_asked]
    if wrong:
        raise InputError(
            f"over sites, where the server has no client's data, there is no {', '.join(wrong)}; leave it out"
        )


def as_profile(values: Mapping[str, Any]) -> Profile:
    """A profile as JSON has it.

    Raises:
        InputError: it is none.
    """
    kinds = {field.name: field.type for field in fields(Profile)}
    right = isinstance(values, dict) and {name: type(value) for name, value in values.items()} == kinds
    if not right or not 0 < values["num_examples"] <= MOST_EXAMPLES:
        raise InputError(f"a site described itself as {reprlib.repr(values)}, and values for {[*kinds]} were due")
    return Profile(**values)
