"""Carries out one run over sites: collects their profiles, then runs the same rounds as on one machine,
over Flower's grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fftmoe.deploy.gather import RollCall, gather
from fftmoe.deploy.job import make_job
from fftmoe.deploy.run_sites import RunSites, check_same_sites
from fftmoe.engines.base import Engine
from fftmoe.engines.flower import FlowerEngine
from fftmoe.errors import RunError
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import (
    Recipe,
    check_deployable,
    check_same_recipe,
    compose_deployed,
    deadline_seconds,
    load_server_data,
    other_backbones,
    recipe_values,
    tier_names,
)
from fftmoe.setup.experiment import Experiment
from fftmoe.setup.load import Loaded
from fftmoe.setup.places import BEGAN_IN, for_sites, place_of
from fftmoe.setup.run import Extra, Result, begin, go_on, unfinished
from fftmoe.setup.site_request import recipe_digest
from fftmoe.store import RunFolder, check_free, check_run_output, read_config

NO_NODE = 0  # Flower gives no node this number, so a client of it counts as absent


@dataclass(frozen=True)
class PreparedRun:
    """Holds a run that is ready for its sites.

    Attributes:
        recipe: passed on to `setup/`, the only package that reads it.
        is_interrupted: whether the run continues in `output`.
        data: the server's own test examples and labels.
        sites: the sites that the run already knows.
        keys: site -> the fingerprint of its key, where sites have keys. accept_changes: see `resume`.
    """

    recipe: Recipe
    output: Path
    is_interrupted: bool
    data: Loaded
    sites: RunSites
    keys: Mapping[str, str]
    accept_changes: bool

    @property
    def job(self) -> dict[str, Any]:
        """Return what a site must know about the run."""
        if self.is_interrupted:
            values, place = read_config(self.output), Path(place_of(self.output).get(BEGAN_IN, "."))
        else:
            values, place = recipe_values(self.recipe), Path()
        return make_job(for_sites(values, place.absolute()), self.data.label_names, self.sites.run)


def prepare(
    recipe: Recipe,
    output: Path,
    progress: Progress,
    keys: Mapping[str, str] | None = None,
    accept_changes: bool = False,
) -> PreparedRun:
    """Check everything that needs no site; an interrupted run in `output` continues with its own recipe.

    Args:
        keys: site -> the fingerprint of its key, where sites have keys.
        accept_changes: see `resume`.

    Raises:
        InputError: the recipe cannot run over sites, or is not that of the interrupted run; the folder holds something
            else, or another process runs it.
    """
    is_interrupted = (output / "config.yaml").exists()
    check_free(output)
    if is_interrupted:
        own = unfinished(output)
        check_same_recipe(output, own, recipe)
        recipe = own
    else:
        check_run_output(output)
    check_deployable(recipe)
    progress.say(f"recipe {recipe_digest(recipe)}; each site must have approved it (fftmoe deploy site review)")
    progress.say("loading the test examples")
    data, sites = load_server_data(recipe), RunSites.read(output)
    return PreparedRun(recipe, output, is_interrupted, data, sites, dict(keys or {}), accept_changes)


def run_over_sites(
    grid: Grid,
    prepared: PreparedRun,
    nodes: Mapping[str, int],
    client_ids: Mapping[str, int],
    wait_seconds: float,
    progress: Progress,
) -> Result:
    """Run a prepared run over these sites, or the rest of it.

    Args:
        nodes: site -> its node.
        client_ids: site -> its index 0, 1, … among the clients, for every site of the federation.
        wait_seconds: how long to wait for sites. A new run needs the profiles of all; an interrupted one knows them,
            and later rounds need a quorum.

    Raises:
        InputError: bad input, or the sites' profiles contradict the deployment. RunError: too few sites answered.
    """
    known = prepared.sites.profiles
    if prepared.is_interrupted:
        check_same_sites(prepared.output, known, client_ids)
    call = RollCall(grid, nodes, client_ids, prepared.job, tier_names(prepared.recipe), known, progress)
    found = gather(call, wait_seconds)
    experiment = compose_deployed(prepared.recipe, prepared.data, found.profiles, client_ids)
    excluded = found.excluded | other_backbones(experiment, found.profiles)
    _report_excluded(excluded, client_ids, progress)
    profiles = {site: profile for site, profile in found.profiles.items() if site not in excluded}
    extra = Extra(
        {"keys": dict(prepared.keys)} if prepared.keys else {},
        lambda folder: RunSites(prepared.sites.run, profiles).write(folder.path),
    )

    def open_engine(experiment: Experiment, folder: RunFolder) -> Engine:
        by_client = {client_ids[site]: nodes[site] if site in profiles else NO_NODE for site in nodes}
        return FlowerEngine(grid, by_client, prepared.job, deadline_seconds(prepared.recipe))

    recipe, output = prepared.recipe, prepared.output
    if prepared.is_interrupted:
        return go_on(experiment, recipe, output, progress, open_engine, prepared.accept_changes, extra)
    return begin(experiment, recipe, output, progress, open_engine, extra)


def _report_excluded(excluded: Mapping[str, str], client_ids: Mapping[str, int], progress: Progress) -> None:
    """Say which sites take no part, and why; a run without any site does not begin."""
    for site, reason in excluded.items():
        progress.say(f"the run goes on without site {site}: {reason}")
    if excluded.keys() == client_ids.keys():
        raise RunError("no site can take part; the reasons are above: correct them, then run this command again")
