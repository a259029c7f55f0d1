"""Server and sites start in other folders: no path of a recipe means one thing here and another thing there."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from fftmoe.backbones import fingerprint
from fftmoe.config import parse_recipe
from fftmoe.deploy.door import read_policy
from fftmoe.deploy.federation import prepare
from fftmoe.deploy.job import make_job
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.errors import InputError
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import recipe_from_text
from fftmoe.setup.places import for_sites, full_model
from fftmoe.setup.site_request import recipe_digest
from policies import allow
from shared_fixtures import COLOURS, Cli
from sites import NAMES, divide, fails_as, natural, over_sites


@pytest.fixture
def here(recipe_values: dict[str, Any], data_folder: Path, backbone_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """The values of a recipe that names data and backbone from the folder of the server."""
    divide(data_folder, tmp_path / "here" / "rows")
    shutil.copytree(backbone_folder, tmp_path / "here" / "model")
    values = over_sites(natural(recipe_values), Path("rows"))
    return {**values, "backbone": {"model": "./model"}}


def settings(tmp_path: Path, **changes: Any) -> SiteSettings:
    return SiteSettings(NAMES[0], 0, tmp_path / "here" / "rows" / NAMES[0], "small", tmp_path / "site", **changes)


def test_a_site_that_starts_elsewhere_reads_the_same_backbone(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Although a folder of that name lies where it starts, and it never sees where the server's rows lie."""
    monkeypatch.chdir(tmp_path / "here")
    prepared = prepare(recipe_from_text(json.dumps(here)), tmp_path / "run", Progress.silent())
    job = json.loads(json.dumps(prepared.job))
    assert "rows" not in json.dumps(job)
    assert job["recipe"]["backbone"]["model"] == str(tmp_path / "here" / "model")
    assert recipe_digest(parse_recipe(job["recipe"], "sent")) == recipe_digest(recipe_from_text(json.dumps(here)))
    (tmp_path / "there" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "there")
    allow(tmp_path / "site", parse_recipe(job["recipe"], "sent"), labels=list(COLOURS))
    opened = open_site(settings(tmp_path), job)
    monkeypatch.chdir(tmp_path / "here")
    from fftmoe.setup.model import build_model

    assert opened.client.backbone == fingerprint(build_model(parse_recipe(here, "here"), COLOURS))


@pytest.mark.parametrize("model", ["./model", "../here/model", "a/b/model", "model/", "~/model"])
def test_a_site_takes_no_folder_that_depends_on_where_it_was_started(here: dict[str, Any], tmp_path: Path, model: str):
    values = {**here, "backbone": {"model": model}}
    recipe = parse_recipe(values, "test")
    allow(tmp_path / "site", recipe, labels=list(COLOURS))
    job = make_job(recipe.model_dump(mode="json"), COLOURS, "abc1")
    with fails_as("recipe", "another folder in each place where a site is started; start this site with --model"):
        open_site(settings(tmp_path), job)
    assert open_site(settings(tmp_path, model=str(tmp_path / "here" / "model")), job).client.backbone


def test_a_folder_with_a_name_of_the_hub_is_refused_before_anything_is_sent(
    here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path / "here")
    recipe = recipe_from_text(json.dumps({**here, "backbone": {"model": "model"}}))
    with pytest.raises(InputError, match=r"backbone.model=model is a folder here.*write \./model"):
        prepare(recipe, tmp_path / "run", Progress.silent())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model", ["./m", "m/", "../m", "a/b/c", "/m", "~/m", "owner/name", "name", "builtin:minilm", "."]
)
def test_whatever_a_backbone_is_called_what_is_sent_depends_on_no_folder(here: dict[str, Any], model: str):
    values = {**here, "backbone": {"model": model}, "start_from": "runs/first"}
    before = copy.deepcopy(values)
    sent = for_sites(values, Path("/srv/place"))
    assert values == before
    assert sent["data"]["source"] != "rows/server"
    assert sent["start_from"] == "off"
    name = sent["backbone"]["model"]
    assert Path(name).is_absolute() or name in ("owner/name", "name", "builtin:minilm")
    assert full_model(name, Path("/other")) == name
    digests = {recipe_digest(parse_recipe(own, "test")) for own in (values, sent)}
    assert len(digests) == 1


def test_a_review_writes_the_full_name_of_a_folder(
    cli: Cli, here: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "site").mkdir()
    Path("mine.yaml").write_text(yaml.safe_dump({**here, "data": {**here["data"], "labels": list(COLOURS)}}))
    done = cli("deploy", "site", "review", "mine.yaml", "--site", tmp_path / "site", "--yes")
    assert done.status == 0, done.err
    assert read_policy(tmp_path / "site").backbones == [str(tmp_path / "here" / "model")]
