"""A federation over sites with their own data produces the bytes of one machine with all data."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fftmoe.backbones import fingerprint
from fftmoe.config import parse_recipe
from fftmoe.deploy.job import make_job, read_profile
from fftmoe.deploy.site import OpenSite, SiteSettings, open_site
from fftmoe.engines.base import Engine
from fftmoe.errors import InputError
from fftmoe.methods.budget import ExpertShape
from fftmoe.records import Budget, ClientPlan, pack_plan
from fftmoe.report.progress import Progress
from fftmoe.server.plan import plan_round
from fftmoe.setup.compose import compose
from fftmoe.setup.deployment import (
    SiteProfile,
    check_deployable,
    compose_deployed,
    load_server_data,
    other_backbones,
    recipe_from_text,
)
from fftmoe.setup.expected import expectations
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.forecast import site_tier
from fftmoe.setup.personalize import open_place
from fftmoe.setup.run import begin, run
from fftmoe.setup.stacking import clients_per_batch
from fftmoe.store import RunFolder
from policies import allow
from sites import NAMES, Sites, divide, fails_as, natural, over_sites

SETTINGS = {
    "plain": {},
    "some of them": {"federation": {"clients_per_round": 2, "rounds": 4}},
    "state on sites": {"adapter": {"router": "personal"}, "federation": {"upload": "int8"}},
    "closed-form head": {"head": {"kind": "closed-form", "num_features": 37, "every": 1}},
    "LoRA": {"method": "hetlora"},
    "validation": {"data": {"validation": 0.2}},
    "best round": {
        "data": {"validation": 0.2},
        "evaluation": {"baselines": "off", "keep": "best"},
        "federation": {"patience": 1, "rounds": 4},
    },
    "warm start": {},
    "rates and clipping": {"federation": {"schedule": "linear", "warmup_rounds": 1, "clip_gradients": 0.25}},
}


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **values,
        **{
            key: {**values.get(key, {}), **change} if isinstance(change, dict) and key != "head" else change
            for key, change in changes.items()
        },
    }


def settings(folder: Path, client_id: int, budget: str) -> SiteSettings:
    name = NAMES[client_id]
    return SiteSettings(name, client_id, folder / name, budget, folder / f"{name}-state")


@pytest.fixture(scope="module")
def divided(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    divide(data_folder, folder)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_sites_produce_the_bytes_of_one_machine(
    recipe_values: dict[str, Any], divided: Path, tmp_path: Path, name: str
):
    values = merged(natural(recipe_values), SETTINGS[name])
    if name == "warm start":
        values["start_from"] = str(run(parse_recipe({**values, "seed": 29}, "first"), tmp_path / "first").folder)
    here = parse_recipe(values, "here")
    local = run(here, tmp_path / "local")
    tiers = [budget.name for budget in compose(here).budgets.values()]

    recipe = parse_recipe(over_sites(values, divided), "there")
    data = load_server_data(recipe)
    job = json.loads(json.dumps(make_job(recipe.model_dump(mode="json"), data.label_names, "abc1")))
    states = tmp_path / "states"
    for c in range(4):
        allow(states / str(c), recipe, labels=list(data.label_names))
    own = [
        open_site(dataclasses.replace(settings(divided, c, tiers[c]), folder=states / str(c)), job) for c in range(4)
    ]
    profiles = [read_profile(json.loads(json.dumps(site.describe()))) for site in own]
    assert [(p.client_id, p.tier) for p in profiles] == list(enumerate(tiers))
    experiment = compose_deployed(recipe, data, *named(list(reversed(profiles))))
    opened: Callable[[Experiment, RunFolder], Engine] = lambda experiment, folder: Sites(own)  # noqa: E731
    remote = begin(experiment, recipe, tmp_path / "remote", Progress.silent(), opened)

    checkpoint = f"checkpoints/round-{local.summary['rounds_completed']:06d}.safetensors"
    for result in ("adapter/adapter_model.safetensors", checkpoint, "adapter/labels.json"):
        assert (remote.folder / result).read_bytes() == (local.folder / result).read_bytes()
    for key in ("accuracy", "accuracy_by_round", "accuracy_by_tier", "labels", "bytes_up", "bytes_down"):
        assert remote.summary[key] == local.summary[key]
    assert remote.summary.get("validation_accuracy") == local.summary.get("validation_accuracy")
    assert ("validation_accuracy" in local.summary) == ("data" in SETTINGS[name])
    assert all(remote.summary.get(key) == local.summary.get(key) for key in ("best_round", "last", "stopped_early"))
    assert "reweighted_accuracy" not in remote.summary  # it would need all labels
    # The sites keep the client states, and the server has none.
    assert not list((remote.folder / "clients").iterdir())
    assert bool(list(states.rglob("*.safetensors"))) == (name != "LoRA")
    assert remote.summary.get("own_data", {}).keys() <= {"global"}  # no client's labels are known


def test_a_site_makes_the_answers_fit_its_own_rows(recipe_values: dict[str, Any], divided: Path, tmp_path: Path):
    """With a solved head the server knows everyone's label shares, and hands them on with the adapter."""
    values = merged(natural(recipe_values), SETTINGS["closed-form head"])
    remote = over_four_sites(values, divided, tmp_path)
    local = run(parse_recipe(values, "here"), tmp_path / "local")
    (tmp_path / "rows.jsonl").write_text('{"text": "red ash", "label": "red"}\n' * 11)
    found, expected = (
        open_place(folder, str(tmp_path / "rows.jsonl")).shares()[0] for folder in (remote, local.folder)
    )
    assert found == expected
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert found["red"] > 0.9
    assert open_place(remote, str(divided / NAMES[1])).rows == 28
    trained = over_four_sites(natural(recipe_values), divided, tmp_path / "trained head")
    with pytest.raises(InputError, match="does not know how often its labels occur; use them as they are"):
        open_place(trained, str(divided / NAMES[1]))


def over_four_sites(values: dict[str, Any], divided: Path, folder: Path) -> Path:
    """The folder of a run over sites in this process."""
    recipe = parse_recipe(over_sites(values, divided), "there")
    data = load_server_data(recipe)
    tiers = [budget.name for budget in compose(parse_recipe(values, "here")).budgets.values()]
    job = json.loads(json.dumps(make_job(recipe.model_dump(mode="json"), data.label_names, "abc1")))
    own = []
    for c, tier in enumerate(tiers):
        allow(folder / "states" / str(c), recipe, labels=list(data.label_names))
        own.append(open_site(dataclasses.replace(settings(divided, c, tier), folder=folder / "states" / str(c)), job))
    profiles = [read_profile(json.loads(json.dumps(site.describe()))) for site in own]
    experiment = compose_deployed(recipe, data, *named(profiles))
    opened: Callable[[Experiment, RunFolder], Engine] = lambda experiment, folder: Sites(own)  # noqa: E731
    return begin(experiment, recipe, folder / "remote", Progress.silent(), opened).folder


@pytest.fixture
def site(recipe_values: dict[str, Any], divided: Path, tmp_path: Path) -> Callable[..., OpenSite]:
    """Opens the first author's site: `site(budget="small", labels=[…], run="…", data={…})`."""

    def make(**changes: Any) -> OpenSite:
        values = over_sites(natural(recipe_values), divided)
        values = {**values, "data": {**values["data"], **changes.get("data", {})}}
        parsed = parse_recipe(values, "test")
        allow(tmp_path, parsed, labels=changes.get("labels", ["blue", "green", "red"]))
        recipe = parsed.model_dump(mode="json")
        job = make_job(recipe, changes.get("labels", ["blue", "green", "red"]), changes.get("run", "abc1"))
        own = settings(divided, 0, changes.get("budget", "small"))
        return open_site(dataclasses.replace(own, folder=tmp_path, **changes.get("settings", {})), job)

    return make


def test_a_site_serves_only_its_own_client_and_only_what_it_agreed_to(site: Callable[..., OpenSite]):
    opened, budget = site(), Budget("small", 1, 2, (1, 2))
    wrong = {
        (1, "train"): "plan is for client 1; this site is client 0",
        (0, "alone"): "task 'alone'; for this recipe this site carries",
    }
    for (client_id, task), words in wrong.items():
        plan = ClientPlan(1, client_id, 5, budget, {}, opened.client.agreed.training, task)
        with fails_as("refused", words):
            opened([pack_plan(plan, {})])


def test_a_site_gives_no_sum_over_fewer_rows_than_its_policy_states(site: Callable[..., OpenSite]):
    """It has 29 rows and sets 3 of them aside."""
    opened = site(data={"validation": 0.1})
    own, agreed = opened.client, opened.client.agreed
    assert (own.rows.trained, own.rows.aside) == (26, 3)
    plan = pack_plan(ClientPlan(1, 0, 5, Budget("small", 1, 2, (1, 2)), {}, agreed.training, "validate"), {})
    for fewest in (3, 4):
        policy = opened.admitted.policy.model_copy(update={"fewest_rows": fewest})
        bound = dataclasses.replace(opened, admitted=dataclasses.replace(opened.admitted, policy=policy))
        if fewest == 3:
            assert bound.describe()["num_examples"] == 29
            continue
        with fails_as("policy", "the task evaluation would depend on 3 of the site's 29 rows"):
            bound.describe()
        with fails_as("policy", "the task evaluation would depend on 3"):
            bound([plan])


def test_a_label_that_was_not_agreed_on_is_named(site: Callable[..., OpenSite]):
    with fails_as("data", r"train\.csv: label 'red' occurs in 9 rows and is not among the agreed .*data\.labels"):
        site(labels=["blue", "green", "violet"])


def test_the_labels_that_a_server_lists_are_those_of_its_recipe(site: Callable[..., OpenSite]):
    """Even where the policy allows others, and in the same order."""
    own = ["blue", "green", "red"]
    assert site(data={"labels": own}, labels=own).client.rows.total == 29
    for sent in (["green", "blue", "red"], [*own, "violet"], []):
        with fails_as("recipe", "and its recipe says"):
            site(data={"labels": own}, labels=sent)


def test_a_site_reads_its_own_folder_and_not_the_one_that_the_server_names(site: Callable[..., OpenSite]):
    assert site(data={"source": "/etc"}).client.rows.total == 29


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({}, "job is {}; expected a dictionary with"),
        ({"recipe": [], "labels": ["a", "b"], "run": "a"}, "expected a dictionary with"),
        ({"recipe": {}, "labels": "ab", "run": "a"}, "expected a dictionary with"),
        ({"recipe": {}, "labels": ["a", 1], "run": "a"}, "expected a dictionary with"),
        ({"recipe": {}, "labels": ["a", "b"], "run": "a", "code": "import os"}, "expected a dictionary with"),
        ({"recipe": {}, "labels": ["a", "b"], "run": "a"}, "missing key 'backbone'"),
        ({"recipe": {"backbone": {}, "data": "x"}, "labels": ["a", "b"], "run": "a"}, "missing key 'head'"),
        ({"recipe": {"backbone": {}, "data": {}}, "labels": ["a", "b"], "run": "a"}, "that the server sent: missing"),
    ],
)
def test_an_invalid_job_is_refused(
    recipe_values: dict[str, Any], divided: Path, tmp_path: Path, job: dict[str, Any], words: str
):
    allow(tmp_path, parse_recipe(recipe_values, "test"))
    with fails_as("recipe", words):
        open_site(dataclasses.replace(settings(divided, 0, "small"), folder=tmp_path), job)


@pytest.mark.parametrize("run", ["../../etc", "a/b", "", "a.b", "ａ", "a" * 65, "a\n"])
def test_a_run_cannot_name_a_folder_elsewhere(site: Callable[..., OpenSite], run: str):
    with fails_as("recipe", "1 to 64 letters and digits"):
        site(run=run)


@pytest.mark.parametrize(
    ("budget", "tier"),
    [
        ("small", "small"),
        ("large", "large"),
        ("auto", "large"),
        ("memory_mib=1000", "large"),
        ("memory_mib=0.011", "small"),
        ("memory_mib=1000,gflops=0.0004", "small"),
    ],
)
def test_a_budget_is_named_measured_or_derived(recipe_values: dict[str, Any], divided: Path, budget: str, tier: str):
    assert tier_of(recipe_values, divided, budget) == tier


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("smal", "did you mean 'small'"),
        ("memory=3", "did you mean 'memory_mib'"),
        ("memory_mib=much", "must be a number"),
        (
            "memory_mib=0.001",
            "no tier of the recipe fits .* has memory_mib 0.001: .* 'small', needs memory_mib 0.01099",
        ),
        ("memory_mib=0.007", "no tier of the recipe fits this machine"),
    ],
)
def test_a_budget_that_cannot_be_used(recipe_values: dict[str, Any], divided: Path, budget: str, words: str):
    with pytest.raises(InputError, match=words):
        tier_of(recipe_values, divided, budget)


def tier_of(recipe_values: dict[str, Any], divided: Path, budget: str) -> str:
    recipe = parse_recipe(over_sites(natural(recipe_values), divided), "test")
    examples = load_server_data(recipe).test
    return site_tier(budget, recipe, ExpertShape(20, 4), (1, 2), len(examples), float(examples.lengths.double().mean()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation": {"baselines": "off", "personal": True}}, "evaluation.personal"),
        ({"evaluation": {"baselines": "off", "local_only": True}}, "evaluation.local_only"),
        ({"data": {"validation_examples": 7}}, "data.validation_examples"),
        ({"method": "centralized"}, "centralized"),
        ({"method": "fedsa-lora"}, "no global model"),
        ({"trackers": ["csvv"]}, "tracker 'csvv'"),
    ],
)
def test_a_recipe_that_needs_all_data_is_refused(
    recipe_values: dict[str, Any], divided: Path, changes: dict[str, Any], words: str
):
    recipe = parse_recipe(merged(over_sites(natural(recipe_values), divided), changes), "test")
    with pytest.raises(InputError, match=words):
        check_deployable(recipe)


def test_a_recipe_comes_from_text_or_by_name(recipe_values: dict[str, Any]):
    assert recipe_from_text(json.dumps(recipe_values)) == parse_recipe(recipe_values, "test")
    assert recipe_from_text("quickstart").name == "quickstart"
    with pytest.raises(InputError, match="starts like JSON but is not valid JSON"):
        recipe_from_text("{'seed': 3}")


def test_the_server_needs_only_test_rows_and_labels(recipe_values: dict[str, Any], divided: Path):
    values = over_sites(natural(recipe_values), divided)
    data = load_server_data(parse_recipe(values, "test"))
    assert (len(data.train), len(data.test), data.label_names) == (0, 41, ("blue", "green", "red"))
    agreed = {**values, "data": {**values["data"], "labels": ["red", "white", "green", "blue"]}}
    assert load_server_data(parse_recipe(agreed, "test")).label_names == ("red", "white", "green", "blue")
    with pytest.raises(InputError, match="is not among the agreed"):
        load_server_data(parse_recipe({**values, "data": {**values["data"], "labels": ["red", "blue"]}}, "test"))


def named(profiles: Sequence[SiteProfile]) -> tuple[dict[str, SiteProfile], dict[str, int]]:
    """The profiles and the indices of these sites by name."""
    return {p.site: p for p in profiles}, {p.site: p.client_id for p in profiles}


def test_a_cohort_is_no_larger_than_the_federation(recipe_values: dict[str, Any], divided: Path):
    recipe = parse_recipe(over_sites(natural(recipe_values), divided), "test")
    with pytest.raises(InputError, match=r"clients_per_round=4 is above the 2 clients"):
        compose_deployed(recipe, load_server_data(recipe), {"a": SiteProfile("a", 0, "small", 5, "")}, {"a": 0, "b": 1})


def test_a_site_with_another_backbone_is_found_before_the_first_round(
    recipe_values: dict[str, Any], divided: Path, site: Callable[..., OpenSite], tmp_path: Path
):
    folder = shutil.copytree(recipe_values["backbone"]["model"], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"].view(torch.int32)[3, 5] ^= 1  # the last bit of one number
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    damaged, whole = site(settings={"model": str(folder)}), site()
    recipe = parse_recipe(
        merged(over_sites(natural(recipe_values), divided), {"federation": {"clients_per_round": 1}}), ""
    )
    other = read_profile({**whole.describe(), "site": "b", "client_id": 1})
    profiles, client_ids = named([read_profile(damaged.describe()), other])
    experiment = compose_deployed(recipe, load_server_data(recipe), profiles, client_ids)
    found = other_backbones(experiment, profiles)
    assert [*found] == ["author-0"]
    assert re.search(r"its backbone \([0-9a-f]{16}\) is not the server's .*--model", found["author-0"])


def test_sites_train_one_client_each(recipe_values: dict[str, Any], divided: Path):
    values = merged(over_sites(natural(recipe_values), divided), {"engine": {"clients_per_batch": "auto"}})
    recipe = parse_recipe(values, "test")
    own = fingerprint(compose(parse_recipe(natural(recipe_values), "here")).model)
    profiles = [SiteProfile(str(c), c, "small", 5, own) for c in range(4)]
    experiment = compose_deployed(recipe, load_server_data(recipe), *named(profiles))
    assert clients_per_batch(experiment) == 1
    assert experiment.remote


def test_an_update_states_as_many_examples_as_the_site_did_when_the_run_began(
    recipe_values: dict[str, Any], divided: Path
):
    """Or it does not count: a site that states 10^9 examples later would own the mean."""
    recipe = parse_recipe(over_sites(natural(recipe_values), divided), "test")
    profiles = [SiteProfile(str(c), c, "small", 5 + c, "") for c in range(4)]
    experiment = compose_deployed(recipe, load_server_data(recipe), *named(profiles))
    method, state = experiment.method, experiment.method.init(experiment.model)
    plan = plan_round(method, state, 1, range(4), experiment.budgets, experiment.training, recipe.seed)
    expect = expectations(experiment)
    assert [expect(client, method.download(state, client)).num_examples for client in plan.clients] == [5, 6, 7, 8]
