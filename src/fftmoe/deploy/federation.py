"""One run over sites: ask who they are, then the same rounds as anywhere, over Flower's grid."""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fftmoe.config import Recipe
from fftmoe.deploy.population import Profile, as_profile, compose_deployed, job_of, load_server
from fftmoe.engines.base import Engine
from fftmoe.engines.flower import FlowerEngine, ask
from fftmoe.errors import InputError, RunError
from fftmoe.report.progress import Progress
from fftmoe.report.trackers import check_trackers
from fftmoe.rounds.run import Result, begin, go_on, unfinished
from fftmoe.setup.compose import Experiment
from fftmoe.setup.load import Loaded
from fftmoe.store import RunFolder, check_output, read_config, write_atomically
from fftmoe.strict import read_small, strict_json

ASK_SECONDS = 120.0  # for a site to load its backbone and its data
LOOK_SECONDS = 1.0  # between looks for sites that have come
SITES = "sites.json"  # in the run's folder


@dataclass(frozen=True)
class Known:
    """What a run remembers of its sites, so that it can go on with them."""

    run: str
    profiles: dict[str, Profile]

    @classmethod
    def read(cls, output: Path) -> "Known":
        """Of an interrupted run; a new one knows nobody.

        Raises:
            InputError: the folder is of a run that had no sites.
        """
        if not (output / "config.yaml").exists():
            return cls(uuid.uuid4().hex, {})
        path = output / SITES
        if not path.exists():
            raise InputError(f"the run in {output} is none over sites; go on with `fftmoe resume {output}`")
        try:
            values = strict_json(read_small(path))
            return cls(values["run"], {name: as_profile(profile) for name, profile in values["profiles"].items()})
        except (OSError, ValueError, LookupError, AttributeError) as error:
            raise InputError(f"{path} is damaged: {error}; put it back as it was, or start a new run") from error

    def write(self, folder: RunFolder) -> None:
        """Into the run's folder."""
        values = {"run": self.run, "profiles": {name: asdict(profile) for name, profile in self.profiles.items()}}
        write_atomically(folder.path / SITES, json.dumps(values, indent=2).encode() + b"\n")


@dataclass(frozen=True)
class Task:
    """A run that is ready for its sites.

    Attributes:
        interrupted: whether it goes on in `output`.
        data: the server's own: test examples and labels.
    """

    recipe: Recipe
    output: Path
    interrupted: bool
    data: Loaded
    known: Known

    @property
    def job(self) -> dict[str, Any]:
        """What sites need to know of it."""
        values = read_config(self.output) if self.interrupted else self.recipe.model_dump(mode="json")
        return job_of(values, self.data.label_names, self.known.run)


def prepare(recipe: Recipe, output: Path, progress: Progress) -> Task:
    """Check what can be checked before any site is asked; an interrupted run in `output` has its own recipe.

    Raises:
        InputError: the recipe cannot be run over sites, or the folder holds something else.
    """
    check_trackers(recipe.trackers)
    interrupted = (output / "config.yaml").exists()
    if interrupted:
        recipe = unfinished(output)
    else:
        check_output(output)
    progress.say("loading the test examples")
    return Task(recipe, output, interrupted, load_server(recipe), Known.read(output))


def run_over_sites(
    grid: Grid,
    task: Task,
    nodes: Mapping[str, int],
    client_ids: Mapping[str, int],
    wait_seconds: float,
    progress: Progress,
) -> Result:
    """Run a task over these sites, or the rest of it.

    Args:
        nodes: site -> its node.
        client_ids: site -> its place among the clients, 0, 1, …, of every site of the federation.
        wait_seconds: for sites to come. Before the first round all must say what they are; later, a quorum is enough.

    Raises:
        InputError: bad input, or the sites' profiles contradict the deployment. RunError: too few sites came.
    """
    profiles = _gather(grid, task, nodes, client_ids, wait_seconds, progress)
    experiment = compose_deployed(task.recipe, task.data, list(profiles.values()))

    def open_engine(experiment: Experiment, folder: RunFolder) -> Engine:
        Known(task.known.run, profiles).write(folder)
        by_client = {client_ids[site]: node for site, node in nodes.items()}
        return FlowerEngine(grid, by_client, task.job, task.recipe.federation.deadline_seconds)

    if task.interrupted:
        return go_on(experiment, task.output, progress, open_engine)
    return begin(experiment, task.recipe, task.output, progress, open_engine)


def _gather(
    grid: Grid,
    task: Task,
    nodes: Mapping[str, int],
    client_ids: Mapping[str, int],
    wait_seconds: float,
    progress: Progress,
) -> dict[str, Profile]:
    """The profile of every site: asked anew of those that come in time, remembered of the others."""
    known, job = task.known.profiles, task.job
    profiles: dict[str, Profile] = {}
    refused: dict[str, str] = {}
    ends = time.monotonic() + wait_seconds
    progress.say(f"waiting for {len(client_ids)} sites: {', '.join(client_ids)}")
    while profiles.keys() != client_ids.keys() and time.monotonic() < ends:
        connected = set(grid.get_node_ids())
        new = {node: site for site, node in nodes.items() if node in connected and site not in profiles}
        for node, answer in ask(grid, list(new), job, ASK_SECONDS).items():
            site = new[node]
            profile = _profile(answer, site, client_ids[site])
            if isinstance(profile, str):
                if refused.get(site) != profile:
                    progress.say(f"site {site} cannot join: {profile}")
                refused[site] = profile
                continue
            profiles[site] = profile
            progress.say(f"site {site} is here: budget {profiles[site].tier}, {profiles[site].num_examples} examples")
        if profiles.keys() != client_ids.keys():
            time.sleep(LOOK_SECONDS)
    missing = [site for site in client_ids if site not in profiles]
    unknown = [site for site in missing if site not in known]
    if unknown:
        reasons = "; ".join(f"{site}: {refused.get(site, 'has not come')}" for site in unknown)
        raise RunError(
            f"not all sites were there within {wait_seconds:g} s ({reasons}); start them, then run this again"
        )
    return {site: profiles.get(site) or known[site] for site in client_ids}


def _profile(answer: Any, site: str, client_id: int) -> Profile | str:
    """What the site says of itself, or why it cannot join."""
    if isinstance(answer, str):
        return answer
    try:
        profile = as_profile(answer)
    except InputError as error:
        return str(error)
    if (profile.site, profile.client_id) != (site, client_id):
        return (
            f"the node with the key of site {site} (client {client_id}) calls itself {profile.site!r:.99} (client "
            f"{profile.client_id}); give each site the folder that was made for it"
        )
    return profile
