"""Preference runs in workers, after an interruption and over sites give the bytes of one process."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fftmoe.backbones import outputs
from fftmoe.config import parse_recipe
from fftmoe.deploy.job import make_job, read_profile
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.report.progress import Progress
from fftmoe.setup.clients import NoStates, build_client, client_spec
from fftmoe.setup.compose import compose
from fftmoe.setup.deployment import compose_deployed, load_server_data
from fftmoe.setup.run import begin, resume, run
from finished import Finished
from five_clients import changed
from interrupting import Killed, interrupt, results
from policies import allow
from run_fixtures import RunLanguage
from sites import Sites

AUTHORS = {"partition": {"kind": "natural", "by": "author"}}
METRIC = "preference_accuracy"


def test_a_worker_runs_from_the_cached_states_of_pairs(preference_values: dict[str, Any]):
    """A new process builds its own model, and must prepare it for states below the adapter."""
    experiment = compose(parse_recipe(preference_values, "test"))
    client = build_client(client_spec(experiment, NoStates()))
    assert client.model is not experiment.model
    batch = experiment.train.batch([0, 3])
    with torch.inference_mode():
        there, here = (outputs(model, batch, next_token=True) for model in (client.model, experiment.model))
    assert "prefix_states" in batch
    assert torch.equal(there, here)


@pytest.mark.slow
def test_one_and_two_workers_give_the_same_bytes(run_preference: RunLanguage):
    one, two = (run_preference(engine={"workers": workers}) for workers in (1, 2))
    assert results(one.folder) == results(two.folder)
    assert one.rows[-1][METRIC] == two.rows[-1][METRIC]


def test_the_rest_of_a_run_gives_the_bytes_of_the_whole(
    preference_values: dict[str, Any], run_preference: RunLanguage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, "before the checkpoint", 1)
        with pytest.raises(Killed):
            run(parse_recipe(preference_values, "test"), folder)
    resume(folder)
    assert results(folder) == results(run_preference().folder)
    assert Finished(folder).summary[f"{METRIC}_by_round"] == run_preference().summary[f"{METRIC}_by_round"]


def test_sites_compute_their_own_references_and_produce_the_bytes_of_one_machine(
    preference_values: dict[str, Any], tmp_path: Path
):
    values = changed(preference_values, **AUTHORS, data__validation=0.2, evaluation={"every": 1})
    local = run(parse_recipe(values, "here"), tmp_path / "local")
    tiers = [budget.name for budget in compose(parse_recipe(values, "here")).budgets.values()]
    rows = Path(values["data"]["source"])
    (tmp_path / "server").mkdir()
    shutil.copy(rows / "test.csv", tmp_path / "server")
    recipe = parse_recipe(changed(values, data__source=str(tmp_path / "server")), "there")
    data = load_server_data(recipe)
    job = json.loads(json.dumps(make_job(recipe.model_dump(mode="json"), data.label_names, "abc1")))
    own = []
    for client in range(3):
        name = f"author-{client}"
        with (rows / "train.csv").open(newline="") as file:
            mine = [row for row in csv.DictReader(file) if row["author"] == name]
        (tmp_path / name).mkdir()
        with (tmp_path / name / "train.csv").open("w", newline="") as file:
            writer: csv.DictWriter[str] = csv.DictWriter(file, ["prompt", "chosen", "rejected"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(mine)
        state = tmp_path / f"{name}-state"
        allow(state, recipe, labels=[])
        own.append(open_site(SiteSettings(name, client, tmp_path / name, tiers[client], state), job))
    profiles = [read_profile(json.loads(json.dumps(site.describe()))) for site in own]
    experiment = compose_deployed(recipe, data, {p.site: p for p in profiles}, {p.site: p.client_id for p in profiles})
    remote = begin(experiment, recipe, tmp_path / "remote", Progress.silent(), lambda *_: Sites(own))
    saved = "adapter/adapter_model.safetensors"
    assert (remote.folder / saved).read_bytes() == (local.folder / saved).read_bytes()
    for key in (f"{METRIC}_by_round", f"validation_{METRIC}", "bytes_up", "bytes_down"):
        assert remote.summary[key] == local.summary[key]
