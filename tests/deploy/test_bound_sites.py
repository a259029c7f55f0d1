"""A federation continues with the sites, keys, recipe and rows it began with; a site notices changes of its own."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_sites import Sites, named

from fftmoe.config import Recipe, parse_recipe
from fftmoe.deploy import site as sites
from fftmoe.deploy.federation import prepare
from fftmoe.deploy.job import make_job, read_profile
from fftmoe.deploy.run_sites import RunSites, check_same_sites
from fftmoe.deploy.site import OpenSite, SiteSettings, open_site
from fftmoe.engines.base import Engine
from fftmoe.errors import InputError
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import compose_deployed, load_server_data
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.run import Extra, Result, begin, go_on, resume
from fftmoe.store import RunFolder, owned
from fftmoe.store.bindings import BINDINGS_FILE
from interrupting import Killed, interrupt
from policies import allow
from sites import NAMES, divide, fails_as, natural, over_sites

LABELS = ["blue", "green", "red"]
KEYS = {name: f"key of {name}" for name in NAMES}


class Deployed:
    """Four sites in this process, whose server can be started again."""

    def __init__(self, folder: Path, values: dict[str, Any], data_folder: Path) -> None:
        self.folder, self.output = folder, folder / "run"
        divide(data_folder, folder)
        self.recipe = parse_recipe(over_sites(natural(values), folder), "there")

    def open(self, client_id: int, **changes: Any) -> OpenSite:
        """Open a site in a new process, as far as it can tell."""
        sites.opened_for.cache_clear()
        own = self.folder / f"state-{client_id}"
        own.mkdir(exist_ok=True)
        allow(own, self.recipe, labels=LABELS)
        data = self.folder / NAMES[client_id]
        settings = SiteSettings(NAMES[client_id], client_id, data, "small", own, **changes)
        job = make_job(self.recipe.model_dump(mode="json"), LABELS, "abc1")
        return open_site(settings, json.loads(json.dumps(job)))

    def run(self, keys: dict[str, str], accept_changes: bool = False) -> Result:
        """Start the server, or start it again."""
        opened = [self.open(client_id) for client_id in range(4)]
        profiles = [read_profile(json.loads(json.dumps(site.describe()))) for site in opened]
        experiment = compose_deployed(self.recipe, load_server_data(self.recipe), *named(profiles))
        known = RunSites("abc1", {profile.site: profile for profile in profiles})
        extra = Extra({"keys": keys}, lambda folder: known.write(folder.path))

        def engine(experiment: Experiment, folder: RunFolder) -> Engine:
            return Sites(opened)

        arguments = (experiment, self.recipe, self.output, Progress.silent(), engine)
        if (self.output / "config.yaml").exists():
            return go_on(*arguments, accept_changes, extra)
        return begin(*arguments, extra)


@pytest.fixture
def deployed(recipe_values: dict[str, Any], data_folder: Path, tmp_path: Path) -> Deployed:
    """A run that was interrupted in its second round."""
    made = Deployed(tmp_path / "federation", recipe_values, data_folder)
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "in training", 2)
        with pytest.raises(Killed):
            made.run(KEYS)
    return made


def test_a_server_continues_with_the_keys_it_began_with(deployed: Deployed):
    renewed = {**KEYS, NAMES[2]: "another"}
    with pytest.raises(InputError, match=f"{NAMES[2]} has another key than at the beginning.*--accept-changes"):
        deployed.run(renewed)
    result = deployed.run(renewed, accept_changes=True)
    assert NAMES[2] in result.summary["accepted_changes"][0]


def test_a_server_continues_with_the_rows_it_began_with(deployed: Deployed):
    path = deployed.folder / "server" / "test.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-3]) + "\n")
    with pytest.raises(InputError, match="the test rows have changed \\(41 rows then, 38 now\\)"):
        deployed.run(KEYS)
    path.write_text(path.read_text())


def test_a_server_continues_with_its_sites_in_their_order(deployed: Deployed):
    """Before any site is asked: a list in another order would give a site's place to another one."""
    known = RunSites.read(deployed.output).profiles
    ids = {name: client_id for client_id, name in enumerate(NAMES)}
    check_same_sites(deployed.output, known, ids)
    check_same_sites(deployed.output, dict(reversed(known.items())), dict(reversed(ids.items())))  # only numbers count
    for changed, words in (
        ({**ids, NAMES[0]: 1, NAMES[1]: 0}, f"{NAMES[0]} was client 0 and would be client 1"),
        ({**ids, "author-9": 4}, "author-9 has joined"),
        ({name: ids[name] for name in NAMES[:3]}, f"{NAMES[3]} is missing"),
        ({**{name: ids[name] for name in NAMES[:3]}, "new": 3}, f"new has joined, {NAMES[3]} is missing"),
    ):
        with pytest.raises(InputError, match=words) as refused:
            check_same_sites(deployed.output, known, changed)
        assert "--accept-changes" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed was 3 and is now 4"),
        ({"federation": {"rounds": 9}}, "federation.rounds was 3 and is now 9"),
        ({"data": {"label": "topic"}}, 'data.label was "label" and is now "topic"'),
        ({"engine": {"prefix_cache": "off"}}, "engine.prefix_cache"),
    ],
)
def test_a_changed_recipe_is_not_ignored(deployed: Deployed, changes: dict[str, Any], words: str):
    values = deployed.recipe.model_dump(mode="json")
    for section, change in changes.items():
        values[section] = {**values[section], **change} if isinstance(change, dict) else change
    other: Recipe = parse_recipe(values, "other")
    with pytest.raises(InputError, match="began with another recipe") as refused:
        prepare(other, deployed.output, Progress.silent())
    assert words in str(refused.value)
    assert "--accept-changes" not in str(refused.value)  # sites keep the recipe of a run, so nobody could accept it
    assert f"--recipe {deployed.output / 'config.yaml'}" in str(refused.value)
    prepared = prepare(deployed.recipe, deployed.output, Progress.silent())
    assert prepared.is_interrupted


def test_a_run_over_sites_is_not_resumed_on_one_machine(deployed: Deployed):
    """The message names the command that goes on, and does not ask for the training rows of the sites."""
    with pytest.raises(InputError, match=r"is one over sites; continue it with .*fftmoe deploy server FOLDER --recipe"):
        resume(deployed.output)


def test_two_deployments_do_not_share_an_output(deployed: Deployed):
    began = int(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])  # see man 5 proc
    note = json.dumps({"pid": os.getppid(), "host": os.uname().nodename, "started": began})
    (deployed.output / "lock").write_text(note)
    with pytest.raises(InputError, match=f"in use by process {os.getppid()}"):
        prepare(deployed.recipe, deployed.output, Progress.silent())
    with owned(deployed.output), pytest.raises(InputError, match="is in use by process"):
        deployed.run(KEYS)


def edit(path: Path, change: Callable[[list[str]], object]) -> None:
    header, *rows = path.read_text().splitlines()
    change(rows)
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.append("ash red,red"), "29 rows then, 30 now"),
        (lambda rows: rows.pop(), "29 rows then, 28 now"),
        (lambda rows: rows.reverse(), "in another order"),
        (lambda rows: rows.__setitem__(3, "ash red,red"), "the training rows have changed"),
    ],
)
def test_a_site_does_not_go_on_with_other_rows_than_it_joined_with(
    deployed: Deployed, change: Callable[[list[str]], object], words: str
):
    """The server learns a code; the words, and the digests, stay at the site."""
    path = deployed.folder / NAMES[0] / "train.csv"
    before = path.read_text()
    edit(path, change)
    with fails_as("changed", words):
        deployed.open(0)
    with fails_as("changed", words):
        deployed.open(0)  # asking again changes nothing
    deployed.open(0, accept_changes=True)
    deployed.open(0)  # it was accepted
    path.write_text(before)
    with fails_as("changed", "training rows"):
        deployed.open(0)
    digests = json.loads((deployed.folder / "state-0" / "state" / "abc1" / BINDINGS_FILE).read_text())["values"]
    profile = json.dumps(deployed.open(0, accept_changes=True).describe())
    assert digests["training rows"]["sha256"] not in profile


def test_a_site_does_not_go_on_with_another_tokenizer(deployed: Deployed, backbone_folder: Path, tmp_path: Path):
    model = Path(shutil.copytree(backbone_folder, tmp_path / "model"))
    values = json.loads((model / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    (model / "tokenizer.json").write_text(json.dumps(values))
    own = dataclasses.replace(deployed.open(0).settings, model=str(model))
    sites.opened_for.cache_clear()
    job = make_job(deployed.recipe.model_dump(mode="json"), LABELS, "abc1")
    allow(own.folder, deployed.recipe, labels=LABELS)
    with fails_as("changed", "the tokenizer, or how images are prepared, has changed"):
        open_site(own, json.loads(json.dumps(job)))
