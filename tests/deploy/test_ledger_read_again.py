"""What a site has written into its ledger is what another process of that site reads, whatever the recipe states."""

import math
from pathlib import Path
from typing import Any

import pytest

from fftmoe.client.screening import CheckedRequest
from fftmoe.deploy import ledger as ledgers
from fftmoe.deploy.account import describe_ledger
from fftmoe.deploy.door import Door
from fftmoe.deploy.ledger import Account, ledger_in
from fftmoe.setup.site_request import SiteRows
from policies import allow
from site_recipes import MODES, PRIVATE, job_of, recipe
from sites import fails_as

WITHOUT_EPSILON: dict[str, dict[str, Any]] = {
    "clients, noise stated": {"privacy": {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}, **PRIVATE},
    "examples, noise stated": {
        "privacy": {"examples": {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}},
        **PRIVATE,
    },
}
GRANTED = {"modes": ["clients"], "epsilon": 99.0, "delta": 1e-3}


def read_again(folder: Path) -> list[dict[str, Any]]:
    """The entries as a process reads them that has just started."""
    ledgers.kept_ledger.cache_clear()
    return ledger_in(folder, folder).read()


def serve(door: Door, job: dict[str, Any]) -> None:
    admitted, asked = door.admit(job), CheckedRequest("train", 1)
    door.count(admitted, asked, SiteRows(13), 100)
    door.answered(admitted, asked, 50)


@pytest.mark.parametrize("changes", [*MODES.values(), *WITHOUT_EPSILON.values()], ids=[*MODES, *WITHOUT_EPSILON])
def test_a_site_that_is_restarted_goes_on_with_its_ledger(tmp_path: Path, changes: dict[str, Any]):
    asked = recipe(changes)
    allow(tmp_path, asked)
    door = Door(tmp_path, own_model=False)
    serve(door, job_of(asked))
    before = ledger_in(tmp_path, tmp_path).read()
    assert read_again(tmp_path) == before
    serve(door, job_of(asked))
    after = read_again(tmp_path)
    assert Account.of(after).times == {"training": 2}
    assert describe_ledger(tmp_path)


def test_a_recipe_that_states_no_epsilon_costs_more_than_any_policy_grants(tmp_path: Path):
    asked = recipe(WITHOUT_EPSILON["clients, noise stated"])
    allow(tmp_path, asked)
    serve(Door(tmp_path, own_model=False), job_of(asked))
    assert Account.of(read_again(tmp_path)).epsilon(1e-2) == math.inf
    stated = recipe(MODES["clients"])
    allow(tmp_path, stated, privacy=GRANTED)
    with fails_as("policy", "epsilon of inf"):
        serve(Door(tmp_path, own_model=False), job_of(stated, run="abc2"))
