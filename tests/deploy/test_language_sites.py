"""Language models over sites: a run, also of preferences, has the bytes of one machine with all rows."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fftmoe.config import parse_recipe
from fftmoe.data.stdlib_instructions import stdlib_instructions
from fftmoe.deploy.job import make_job, read_profile
from fftmoe.deploy.site import OpenSite, SiteSettings, open_site
from fftmoe.report.progress import Progress
from fftmoe.setup.compose import compose
from fftmoe.setup.deployment import compose_deployed, load_server_data
from fftmoe.setup.run import begin, run
from five_clients import changed
from policies import allow
from sites import Sites

BY_AUTHOR = {"partition": {"kind": "natural", "by": "author"}}
COLUMNS = ("prompt", "completion", "chosen", "rejected")
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("values", "metric"), [("language_values", "perplexity"), ("preference_values", "preference_accuracy")]
)
def test_sites_produce_the_bytes_of_one_machine(
    values: str, metric: str, request: pytest.FixtureRequest, tmp_path: Path
):
    """Of preferences each site also computes what its rows are worth to the reference."""
    recipe = changed(request.getfixturevalue(values), **BY_AUTHOR, data__validation=0.2, evaluation={"every": 1})
    assert_same_over_sites(recipe, metric, tmp_path)


@pytest.mark.slow
def test_four_sites_tune_a_real_model_to_the_bytes_of_one_machine(language_values: dict[str, Any], tmp_path: Path):
    """SmolLM2-135M in the precision and with the cached states that are its defaults."""
    write_instructions(tmp_path / "rows", clients=4, train=11, test=3)
    recipe = changed(
        language_values,
        **BY_AUTHOR,
        backbone__model="builtin:smollm2",
        data__source=str(tmp_path / "rows"),
        data__max_length=97,
        adapter__blocks="last-2",
        federation__clients_per_round=4,
        evaluation={"every": 1},
        engine={"workers": 1},
    )
    assert_same_over_sites(recipe, "perplexity", tmp_path)


def write_instructions(folder: Path, clients: int, train: int, test: int) -> None:
    """Some of the builtin instructions, whose kinds are the authors."""
    folder.mkdir()
    made = stdlib_instructions()
    kinds = sorted({row.kind for row in made["train"]})[:clients]
    for split, number in (("train", train), ("test", test)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("prompt", "completion", "author"))
            for kind in kinds:
                own = [row for row in made[split] if row.kind == kind][:number]
                writer.writerows((row.prompt, row.completion, kind) for row in own)


def assert_same_over_sites(values: dict[str, Any], metric: str, folder: Path) -> None:
    """Run the recipe here, and over one site for each author of its rows; compare adapters, metrics and bytes."""
    here = parse_recipe(values, "here")
    local = run(here, folder / "local")
    experiment = compose(here)
    tiers = [experiment.budgets[client].name for client in range(experiment.num_clients)]
    rows = Path(values["data"]["source"])
    (folder / "server").mkdir()
    shutil.copy(rows / "test.csv", folder / "server")
    recipe = parse_recipe(changed(values, data__source=str(folder / "server")), "there")
    data = load_server_data(recipe)
    job = json.loads(json.dumps(make_job(recipe.model_dump(mode="json"), data.label_names, "abc1")))
    own: list[OpenSite] = []
    for client, name in enumerate(write_authors(rows / "train.csv", folder)):
        allow(folder / f"{name}-state", recipe, labels=[])
        own.append(open_site(SiteSettings(name, client, folder / name, tiers[client], folder / f"{name}-state"), job))
    profiles = [read_profile(json.loads(json.dumps(site.describe()))) for site in own]
    deployed = compose_deployed(recipe, data, {p.site: p for p in profiles}, {p.site: p.client_id for p in profiles})
    remote = begin(deployed, recipe, folder / "remote", Progress.silent(), lambda *_: Sites(own))
    assert (remote.folder / ADAPTER).read_bytes() == (local.folder / ADAPTER).read_bytes()
    validation = [key for key in (f"validation_{metric}",) if key in local.summary]
    for key in (f"{metric}_by_round", "bytes_up", "bytes_down", *validation):
        assert remote.summary[key] == local.summary[key]


def write_authors(file: Path, folder: Path) -> list[str]:
    """Write each author's training rows, without the author, into a folder of its name; the names in order."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    authors = sorted({row["author"] for row in rows})
    for author in authors:
        (folder / author).mkdir()
        with (folder / author / "train.csv").open("w", newline="") as written:
            columns = [column for column in COLUMNS if column in rows[0]]
            writer: csv.DictWriter[str] = csv.DictWriter(written, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in rows if row["author"] == author)
    return authors
