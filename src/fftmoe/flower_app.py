"""The entry points of a Flower app: `flwr run` on any SuperLink runs a federation with them.

Run configuration: `recipe` (JSON, or a path on the server), `output` (the run's folder), `sites` (how many),
`wait-seconds`. Node configuration: `site`, `client-id`, `data`, and perhaps `budget`, `folder`, `model`.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fftmoe.config import load_recipe, parse_recipe
from fftmoe.deploy.federation import prepare, run_over_sites
from fftmoe.engines.flower import ask
from fftmoe.engines.flower_messages import make_client_app
from fftmoe.errors import InputError, RunError
from fftmoe.experiment.site import SiteSettings, open_site, serve
from fftmoe.report.progress import Progress

WHO = {"who": True}  # the query that a node answers without a job


def site_settings(context: Context) -> SiteSettings:
    """A node's configuration as settings; a simulation's node i is site-i, below the run's `sites-folder`.

    Raises:
        InputError: a key is missing.
    """
    config = dict(context.node_config)
    if "partition-id" in config and "site" not in config:
        name, folder = f"site-{config['partition-id']}", Path(str(context.run_config["sites-folder"]))
        config |= {"site": name, "client-id": config["partition-id"], "data": str(folder / name)}
        config |= {"folder": str(folder / name)}
    for key in ("site", "client-id", "data"):
        if key not in config:
            raise InputError(f"the node's configuration has no {key!r}; it needs site, client-id and data")
    return SiteSettings(
        name=str(config["site"]),
        client_id=int(config["client-id"]),
        data=Path(str(config["data"])),
        budget=str(config.get("budget", "auto")),
        folder=Path(str(config.get("folder", "."))),
        model=str(config["model"]) if "model" in config else None,
    )


def profile(job: Mapping[str, Any], context: Context) -> Mapping[str, Any]:
    """What the site says of itself; who it is, even without a job."""
    settings = site_settings(context)
    if job == WHO:
        return {"site": settings.name, "client_id": settings.client_id}
    return open_site(settings, job).profile


client_app = make_client_app(lambda job, context: serve(site_settings(context), job), profile)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the recipe over the nodes that are there."""
    config = context.run_config
    text = str(config["recipe"])
    recipe = parse_recipe(json.loads(text), "recipe") if text.startswith("{") else load_recipe(text)
    wait = float(config.get("wait-seconds", 600.0))
    found = _who(grid, int(config["sites"]), wait)
    nodes = {site: node for site, (node, _) in found.items()}
    client_ids = {site: client_id for site, (_, client_id) in found.items()}
    progress = Progress(Console())
    run_over_sites(grid, prepare(recipe, Path(str(config["output"])), progress), nodes, client_ids, wait, progress)


def _who(grid: Grid, num_sites: int, wait_seconds: float) -> dict[str, tuple[int, int]]:
    """Site -> its node and client id, once there are as many as there should be."""
    ends = time.monotonic() + wait_seconds
    found: dict[str, tuple[int, int]] = {}
    asked: set[int] = set()
    while len(found) < num_sites:
        new = [node for node in grid.get_node_ids() if node not in asked]
        for node, answer in ask(grid, new, WHO, wait_seconds).items():
            asked.add(node)
            if isinstance(answer, str):
                raise InputError(f"a node could not say who it is: {answer}")
            if answer["site"] in found:
                raise InputError(f"two nodes call themselves site {answer['site']}; give each its own name")
            found[str(answer["site"])] = node, int(answer["client_id"])
        if time.monotonic() > ends:
            raise RunError(f"{len(found)} of {num_sites} sites came within {wait_seconds:g} s")
        time.sleep(1.0)
    if sorted(client_id for _, client_id in found.values()) != list(range(num_sites)):
        raise InputError(f"the sites' client ids must be 0 to {num_sites - 1}, each once")
    return dict(sorted(found.items(), key=lambda item: item[1][1]))
