"""Defines the entry points of a Flower app, with which `flwr run` runs a federation on any SuperLink.

Run configuration: `recipe` (JSON, or a path on the server), `output` (the run's folder), `sites` (their number),
`wait-seconds`, and for a simulation `sites-folder`. Node configuration: `site`, `client-id` and `data`; optional are
`budget`, `folder` and `model`. A stock node starts a new process for each message, so a site keeps its state in files.

A node obeys the policy and keeps the ledger in its `folder`, as a site of `fftmoe deploy` does. But both bind this app
only: Flower's own nodes run any app that their SuperLink sends, so a malicious server can send one that asks no policy.
"""

import reprlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fftmoe.deploy.federation import prepare, run_over_sites
from fftmoe.deploy.gather import ASK_SECONDS, CONNECTED_POLL_SECONDS
from fftmoe.deploy.site import SiteSettings, open_site
from fftmoe.engines.flower import ask
from fftmoe.engines.flower_messages import make_client_app
from fftmoe.errors import InputError, RunError
from fftmoe.report.console import Console
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import recipe_from_text
from fftmoe.shown import count_of

WHO = {"who": True}  # the query that a node answers without a job
ANSWER_TYPES = {"site": str, "client_id": int}  # its answer
SettingT = TypeVar("SettingT", int, float)


def site_settings(context: Context) -> SiteSettings:
    """Return a node's configuration as settings; node i of a simulation is site-i, in a folder below `sites-folder`.

    Raises:
        InputError: a key is missing, or its value cannot be used.
    """
    config = dict(context.node_config)
    if "partition-id" in config and "site" not in config:
        name, folder = f"site-{config['partition-id']}", Path(str(context.run_config["sites-folder"]))
        config |= {"site": name, "client-id": config["partition-id"], "data": str(folder / name)}
        config |= {"folder": str(folder / name)}
    for key in ("site", "client-id", "data"):
        if key not in config:
            raise InputError(f"the node's configuration has no {key!r}; it needs site, client-id and data")
    data = Path(str(config["data"]))
    if not data.is_dir():  # a recipe may name a data set of a hub, a node may not
        raise InputError(
            f"the node's data={config['data']!r} is not a folder on its machine; name the folder with its train.*"
        )
    return SiteSettings(
        name=str(config["site"]),
        client_id=_setting(config, "client-id", int, 0),
        data=data,
        budget=str(config.get("budget", "auto")),
        folder=Path(str(config.get("folder", "."))),
        model=str(config["model"]) if "model" in config else None,
        server="Flower",
        encoding=str(config["encoding"]) if "encoding" in config else None,
    )


def describe_site(job: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
    """Return the site's profile for a job; for the query `WHO` only its name and client id."""
    settings = site_settings(context)
    if job == WHO:
        return {"site": settings.name, "client_id": settings.client_id}
    return open_site(settings, job).describe()


client_app = make_client_app(lambda job, context: open_site(site_settings(context), job), describe_site)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Check everything that needs no node, then run the recipe over the nodes that come."""
    config, progress = context.run_config, Progress(Console())
    num_sites, wait = _setting(config, "sites", int, 1), _setting(config, "wait-seconds", float, 0.0)
    prepared = prepare(recipe_from_text(str(config["recipe"])), Path(str(config["output"])), progress)
    found = introduce(grid, num_sites, wait, progress)
    nodes = {site: node for site, (node, _) in found.items()}
    client_ids = {site: client_id for site, (_, client_id) in found.items()}
    run_over_sites(grid, prepared, nodes, client_ids, wait, progress)


def _setting(config: Mapping[str, Any], key: str, kind: type[SettingT], least: SettingT) -> SettingT:
    """Return the value of a key, which may be text, as a number."""
    try:
        value = kind(str(config[key]))
    except ValueError:
        value = None
    if value is None or not value >= least:
        raise InputError(f"{key} must be a number of at least {least} (value: {config[key]!r})")
    return value


@dataclass
class Introductions:
    """Keeps the nodes that have said which site they are.

    Attributes:
        sites: site -> its node and its client id.
        refused: node -> why it cannot say who it is, as it was last reported.
    """

    grid: Grid
    progress: Progress
    sites: dict[str, tuple[int, int]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def look(self, seconds: float) -> None:
        """Ask the nodes that are connected and have not introduced themselves yet.

        Raises:
            InputError: two nodes say that they are the same site.
        """
        known = {node for node, _ in self.sites.values()}
        new = [node for node in self.grid.get_node_ids() if node not in known]
        for node, answer in ask(self.grid, new, WHO, seconds).items():
            who = _site_of(answer)
            if isinstance(who, str):
                if self.refused.get(node) != who:
                    self.progress.say(f"a node cannot say which site it is: {who}")
                self.refused[node] = who
                continue
            site, client_id = who
            if site in self.sites:
                raise InputError(f"two nodes say that they are site {site}; give each its own name")
            self.sites[site] = node, client_id
            self.refused.pop(node, None)


def introduce(
    grid: Grid, num_sites: int, wait_seconds: float, progress: Progress, look_seconds: float = CONNECTED_POLL_SECONDS
) -> dict[str, tuple[int, int]]:
    """Wait for `num_sites` sites; returns site -> its node and client id, in the order of client ids.

    A node that cannot say which site it is, perhaps because it has just gone, is asked again until the time is over.

    Args:
        look_seconds: between two looks for nodes that have connected.

    Raises:
        RunError: too few sites came in time. InputError: their names or client ids contradict each other.
    """
    ends = time.monotonic() + wait_seconds
    found = Introductions(grid, progress)
    progress.say(f"waiting for {count_of(num_sites, 'site')}")
    while True:
        found.look(max(1.0, min(ends - time.monotonic(), ASK_SECONDS)))
        if len(found.sites) >= num_sites:
            break
        if time.monotonic() >= ends:
            reasons = "".join(f"; one node cannot say which site it is: {reason}" for reason in found.refused.values())
            raise RunError(
                f"{len(found.sites)} of {count_of(num_sites, 'site')} came within {wait_seconds:g} s{reasons}"
            )
        time.sleep(look_seconds)
    if sorted(client_id for _, client_id in found.sites.values()) != list(range(num_sites)):
        raise InputError(
            f"the sites' client ids must be 0 to {num_sites - 1}, each once: "
            + ", ".join(f"{site} is {client_id}" for site, (_, client_id) in found.sites.items())
        )
    return dict(sorted(found.sites.items(), key=lambda item: item[1][1]))


def _site_of(answer: Any) -> tuple[str, int] | str:
    """Return the site and the client id in a node's answer, or why there are none."""
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, dict) or {key: type(value) for key, value in answer.items()} != ANSWER_TYPES:
        return f"it answered {reprlib.repr(answer)}; expected {[*ANSWER_TYPES]}"
    return answer["site"], answer["client_id"]
