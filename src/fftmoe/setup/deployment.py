"""Prepares a run over sites from its recipe: whether it can run so, the server's test examples, and the sites as
clients.

The server holds the recipe and the test examples. Training examples and client states stay with the sites.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fftmoe.backbones import fingerprint
from fftmoe.config import Recipe as Recipe
from fftmoe.config import load_recipe
from fftmoe.data import Partition, Ragged, SplitRequest
from fftmoe.errors import InputError
from fftmoe.report.trackers import check_trackers
from fftmoe.setup.centralized import is_centralized
from fftmoe.setup.compose import assemble
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.load import Loaded, agreed_labels, test_owners
from fftmoe.setup.method import method_class
from fftmoe.setup.places import check_means_the_same
from fftmoe.setup.plugins import Plugins
from fftmoe.setup.splits import load_splits
from fftmoe.store.bindings import differences, require_same
from fftmoe.strict import strict_json


@dataclass(frozen=True)
class SiteProfile:
    """Says how a site describes itself before the first round.

    Attributes:
        site: name of the site.
        client_id: its index among the clients.
        tier: name of its budget in the recipe.
        num_examples: number of its rows.
        backbone: fingerprint of the backbone that it loaded.
    """

    site: str
    client_id: int
    tier: str
    num_examples: int
    backbone: str


def recipe_from_text(text: str) -> Recipe:
    """Return a recipe from its JSON text, from the path of a file, or from the name of a shipped recipe; with all
    defaults.

    Raises:
        InputError: there is no such recipe, or it is not valid.
    """
    if not text.lstrip().startswith("{"):
        return load_recipe(text, may_read=False)
    try:
        values = strict_json(text)
    except ValueError as error:
        raise InputError(f"the run's recipe starts like JSON but is not valid JSON: {error}; correct it") from error
    return load_recipe(values, may_read=False)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON values, which the server sends to the sites."""
    return recipe.model_dump(mode="json")


def check_same_recipe(output: Path, own: Recipe, given: Recipe) -> None:
    """Refuse a recipe that is not the one with which the interrupted run in `output` began.

    Args:
        own: the recipe of the run.

    Raises:
        InputError: they differ.
    """
    then, now = ({"recipe": recipe_values(recipe)} for recipe in (own, given))
    require_same(
        f"the run in {output} began with another recipe",
        differences(then, now),
        None,
        f"continue it with its own: --recipe {output / 'config.yaml'}; or name a new folder with --output",
    )


def deadline_seconds(recipe: Recipe) -> float:
    """Return how long the server waits for the answers of a round."""
    return recipe.federation.deadline_seconds


def check_deployable(recipe: Recipe) -> None:
    """Refuse a recipe that only a machine with all training data can run, or whose trackers are not installed.

    Raises:
        InputError: names the keys of the recipe that must go.
    """
    check_trackers(recipe.trackers)
    check_means_the_same(recipe.backbone.model)
    capabilities = method_class(recipe).capabilities
    asked = {
        "evaluation.personal": recipe.evaluation.personal,
        "evaluation.local_only": recipe.evaluation.local_only,
        "data.train_examples": recipe.data.train_examples is not None,
        "data.validation_examples": recipe.data.validation_examples is not None,
        "data.test_examples": recipe.data.test_examples is not None,
        f"method={recipe.method}": is_centralized(recipe),
        f"method={recipe.method}, which has no global model": capabilities.personal,
    }
    if recipe.backbone.task == "regression" and recipe.data.target_scales == "auto":
        raise InputError(
            "a run over sites, whose server has no training data, cannot derive the scale of the targets; write a "
            "[centre, scale] for each, for example data.target_scales=[[0, 100]], or data.target_scales=none"
        )
    wrong = [name for name, is_asked in asked.items() if is_asked]
    if wrong:
        raise InputError(
            "a run over sites, whose server has no training data, does not support "
            f"{', '.join(wrong)}; remove it from the recipe"
        )


def load_server_data(recipe: Recipe) -> Loaded:
    """Return the test examples, and the labels that all sites use: `data.labels` of the recipe, or those of the test
    rows.

    Raises:
        InputError: the test examples cannot be read.
    """
    found = load_splits(recipe, recipe.data.source, SplitRequest(("test",), agreed_labels(recipe), divide=False))
    test = found.examples["test"]
    return Loaded(
        train=test.select([]),
        test=test,
        label_names=found.label_names,
        groups=None,
        max_length=found.max_length,
        strata=found.strata,
        rows=found.rows,
        reader=found.reader,
        test_owners=test_owners(recipe, found),
    )


def tier_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the recipe's budgets."""
    return tuple(budget.name for budget in recipe.budgets)


def compose_deployed(
    recipe: Recipe, data: Loaded, profiles: Mapping[str, SiteProfile], client_ids: Mapping[str, int]
) -> Experiment:
    """Return the experiment that the server runs over these sites: one site for each of the clients 0, 1, ….

    Args:
        profiles: site -> its profile. A site without one takes no part; it keeps its place among the clients, with one
            example and the first tier, so that every other client keeps its id.
        client_ids: site -> its index, for every site of the federation.

    Raises:
        InputError: as `compose`.
    """
    names = tier_names(recipe)
    ordered = sorted(client_ids, key=lambda site: client_ids[site])
    assert [client_ids[site] for site in ordered] == list(range(len(ordered)))
    absent = {site: SiteProfile(site, client_ids[site], names[0], 1, "") for site in ordered if site not in profiles}
    every = [absent.get(site) or profiles[site] for site in ordered]
    no_rows = Ragged(np.empty(0, dtype=np.int64), np.zeros(len(every) + 1, dtype=np.int64))
    partition = Partition(no_rows, tuple(ordered))
    tier_of = np.array([names.index(profile.tier) for profile in every])
    sizes = np.array([profile.num_examples for profile in every])
    return assemble(recipe, data, partition, tier_of, sizes, Plugins(), remote=True)


def other_backbones(experiment: Experiment, profiles: Mapping[str, SiteProfile]) -> dict[str, str]:
    """Return the sites whose backbone is not the server's, each with the reason why it cannot take part."""
    own = fingerprint(experiment.model)
    return {
        site: f"its backbone ({profile.backbone}) is not the server's ({own}): its weights or its configuration "
        "differ, or a file is damaged; give the site the same model, and name its folder with --model"
        for site, profile in profiles.items()
        if profile.backbone != own
    }
