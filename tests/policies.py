"""Policies of sites for tests: what an operator would write after a review, with room for what a test changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fftmoe.config import Recipe, parse_recipe
from fftmoe.deploy.ledger import LEDGER_FILE, ledger_in
from fftmoe.errors import InputError
from fftmoe.setup.site_request import request_in

TASKS = ["profile", "training", "feature-sums", "evaluation"]


def policy_of(*recipes: Recipe, **changes: Any) -> dict[str, Any]:
    """A policy that allows these recipes and all that they ask, in every mode of privacy."""
    requests = [request_in(recipe) for recipe in recipes]
    columns: dict[str, list[str]] = {use: [] for use in ("text", "label", "client", "strata")}
    for request in requests:
        for use, names in columns.items():
            names += [name for name in getattr(request.columns, use) if name not in names]
    return {
        "recipes": [request.digest for request in requests],
        "columns": columns,
        "tasks": TASKS,
        "privacy": {"modes": ["none", "sums", "clients", "examples"]},
        "backbones": sorted({request.backbone for request in requests}),
        "fewest_rows": 1,
        "fewest_rows_of_label": 1,
        "most_rounds": 1000,
        "name_counts": True,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()},
    }


def write_policy(folder: Path, policy: dict[str, Any]) -> None:
    """Write the policy of the site in `folder`; a site without a ledger gets one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(policy, sort_keys=False))
    path.chmod(0o600)
    if not (folder / LEDGER_FILE).exists():
        ledger_in(folder, folder).begin()


def allow(folder: Path, *recipes: Recipe, **changes: Any) -> None:
    """Let the site in `folder` serve these recipes."""
    write_policy(folder, policy_of(*recipes, **changes))


def allow_values(folder: Path, values: dict[str, Any], labels: Sequence[str]) -> None:
    """Let the site in `folder` serve the recipe that a server sends as these values, if they are one."""
    try:
        recipes = [parse_recipe(values, "test")]
    except InputError:
        recipes = []
    allow(folder, *recipes, labels=list(labels))
