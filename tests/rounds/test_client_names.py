"""Clients have the names that the data gives them, wherever a person reads of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.errors import InputError, RunError
from fftmoe.records.client_names import naming_clients, with_names
from finished import Finished
from five_clients import changed
from reports import config, report_page, rows, structure_of, summary
from shared_fixtures import Cli

NAMES = [f"author-{number}" for number in range(4)]


@pytest.fixture(scope="module")
def recipe(recipe_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with a client for each author."""
    path = tmp_path_factory.mktemp("named") / "named.yaml"
    natural = {"kind": "natural", "by": "author"}
    values = changed(recipe_values, partition=natural, federation__clients_per_round=3, evaluation={"baselines": "off"})
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(cli: Cli, recipe: Path) -> Finished:
    outcome = cli("run", recipe, "--output", recipe.parent / "run")
    assert outcome.status == 0, outcome.err
    return Finished(recipe.parent / "run", outcome)


def test_plan_and_summary_and_page_have_the_names(cli: Cli, recipe: Path, finished: Finished):
    plan = cli("plan", recipe).out
    for name in NAMES:
        assert f"client {name}  " in plan
    assert json.loads(cli("plan", recipe, "--json").out)["client_names"] == NAMES
    assert finished.summary["client_names"] == finished.summary["clients"]["name"] == NAMES
    page = structure_of((finished.folder / "report.html").read_text()).text
    assert all(name in page for name in NAMES)


def test_a_client_is_asked_and_exported_by_its_name_or_number(cli: Cli, finished: Finished, tmp_path: Path):
    by_name, by_number = (cli("predict", finished.folder, "ash bay", "--client", who) for who in ("author-2", "2"))
    assert by_name.status == 0, by_name.err
    assert by_name.out == by_number.out
    exported = cli("export", finished.folder, "--to", "personal", "--client", "author-1", "--output", tmp_path / "own")
    assert exported.status == 0, exported.err
    about = json.loads((tmp_path / "own" / "export.json").read_text())
    assert (about["client"], about["client_name"]) == (1, "author-1")
    assert "client author-1" in (tmp_path / "own" / "README.md").read_text()
    wrong = cli("predict", finished.folder, "ash bay", "--client", "author-7")
    assert wrong.status == 2
    assert "client author-7 does not exist" in wrong.err
    assert "author-" in wrong.err.partition("does not exist")[2]


def test_a_failure_names_the_client(cli: Cli, recipe: Path, tmp_path: Path):
    diverged = cli("run", recipe, "--output", tmp_path / "run", "--set", "federation.learning_rate=1e30")
    assert diverged.status == 1
    assert "('author-" in diverged.err


def test_a_private_run_names_nobody(cli: Cli, recipe: Path, tmp_path: Path):
    private = ("privacy={min_contributors: 2}", "adapter.residents=balanced")
    outcome = cli("run", recipe, "--output", tmp_path / "run", *(part for s in private for part in ("--set", s)))
    assert outcome.status == 0, outcome.err
    assert "author-" not in outcome.out
    for name in ("summary.json", "report.html", "metrics.jsonl"):
        assert "author-" not in (tmp_path / "run" / name).read_text()


def test_faults_on_the_page_have_names():
    recorded = rows()
    recorded[-1]["fault_counts"] = {"late": 1}
    recorded[-1]["faults"] = [{"client_id": 6, "kind": "late", "reason": "slow"}]
    names = [f"ward {letter}" for letter in "abcdefg"]
    found = structure_of(report_page(config(), recorded, summary(client_names=names))).text
    assert "round 3ward glateslow" in found
    assert "ward a" in found  # beside the map of who uses what


def test_numbers_become_names_once_and_only_where_there_are_names():
    names = ["north", "it's"]
    assert with_names("client 0 failed, client 1: no, client 7", names) == (
        "client 0 ('north') failed, client 1 (\"it's\"): no, client 7"
    )
    once = with_names("client 1 failed", names)
    assert with_names(once, names) == once
    assert with_names("client 0", None) == "client 0"
    with pytest.raises(RunError, match=r"client 0 \('north'\) died"), naming_clients(names):
        raise RunError("client 0 died")
    with pytest.raises(InputError, match=r"^client 1$"), naming_clients(None):
        raise InputError("client 1")
