"""The entry points of a Flower app: `flwr run` on any SuperLink runs a federation with them.

Run configuration: `recipe` (JSON, or a path on the server), `output` (the run's folder), `sites` (how many),
`wait-seconds`, and for a simulation `sites-folder`. Node configuration: `site`, `client-id`, `data`, and perhaps
`budget`, `folder`, `model`. Stock nodes start a process for each message, so that what a site keeps is in files.
"""

import reprlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from fftmoe.config import Recipe, load_recipe, parse_recipe
from fftmoe.deploy.federation import ASK_SECONDS, LOOK_SECONDS, prepare, run_over_sites
from fftmoe.deploy.site import SiteSettings, open_site, serve
from fftmoe.engines.flower import ask
from fftmoe.engines.flower_messages import make_client_app
from fftmoe.errors import InputError, RunError
from fftmoe.report.progress import Progress
from fftmoe.strict import strict_json

WHO = {"who": True}  # the query that a node answers without a job
NAMED = {"site": str, "client_id": int}  # its answer
Number = TypeVar("Number", int, float)


def site_settings(context: Context) -> SiteSettings:
    """A node's configuration as settings; a simulation's node i is site-i, below the run's `sites-folder`.

    Raises:
        InputError: a key is missing, or has no such value.
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
    if not data.is_dir():  # elsewhere what is no folder may be a data set of a hub
        raise InputError(
            f"the node's data={config['data']!r} is no folder where it runs; name the one with its train.*"
        )
    return SiteSettings(
        name=str(config["site"]),
        client_id=_number(config, "client-id", int, 0),
        data=data,
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
    """Run the recipe over the nodes that are there, once all that needs no node is checked."""
    config, progress = context.run_config, Progress(Console())
    num_sites, wait = _number(config, "sites", int, 1), _number(config, "wait-seconds", float, 0.0)
    task = prepare(_recipe(str(config["recipe"])), Path(str(config["output"])), progress)
    found = _who(grid, num_sites, wait, progress)
    nodes = {site: node for site, (node, _) in found.items()}
    client_ids = {site: client_id for site, (_, client_id) in found.items()}
    run_over_sites(grid, task, nodes, client_ids, wait, progress)


def _recipe(text: str) -> Recipe:
    if not text.lstrip().startswith("{"):
        return load_recipe(text)
    try:
        values = strict_json(text)
    except ValueError as error:
        raise InputError(f"the run's recipe looks like JSON and is none: {error}") from error
    return parse_recipe(values, "of the run")


def _number(config: Mapping[str, Any], key: str, kind: type[Number], least: Number) -> Number:
    """The value of a key, which may have been given as text."""
    try:
        value = kind(str(config[key]))
    except ValueError:
        value = None
    if value is None or not value >= least:
        raise InputError(f"{key} must be a number of at least {least} (value: {config[key]!r})")
    return value


def _named(answer: Any) -> tuple[str, int] | str:
    """The site and its client id, or why there is none."""
    if isinstance(answer, str):
        return answer
    if not isinstance(answer, dict) or {key: type(value) for key, value in answer.items()} != NAMED:
        return f"it answered {reprlib.repr(answer)}, and site and client_id were asked"
    return answer["site"], answer["client_id"]


def _who(grid: Grid, num_sites: int, wait_seconds: float, progress: Progress) -> dict[str, tuple[int, int]]:
    """Site -> its node and client id, once there are as many as there should be.

    A node that cannot say who it is, perhaps since it has just gone, is asked again until the time is over.
    """
    ends = time.monotonic() + wait_seconds
    found: dict[str, tuple[int, int]] = {}
    refused: dict[int, str] = {}
    progress.say(f"waiting for {num_sites} sites")
    while True:
        known = {node for node, _ in found.values()}
        new = [node for node in grid.get_node_ids() if node not in known]
        for node, answer in ask(grid, new, WHO, max(1.0, min(ends - time.monotonic(), ASK_SECONDS))).items():
            who = _named(answer)
            if isinstance(who, str):
                if refused.get(node) != who:
                    progress.say(f"a node cannot say who it is: {who}")
                refused[node] = who
                continue
            site, client_id = who
            if site in found:
                raise InputError(f"two nodes call themselves site {site}; give each its own name")
            found[site] = node, client_id
            refused.pop(node, None)
        if len(found) >= num_sites:
            break
        if time.monotonic() >= ends:
            reasons = "".join(f"; one cannot say who it is: {reason}" for reason in refused.values())
            raise RunError(f"{len(found)} of {num_sites} sites came within {wait_seconds:g} s{reasons}")
        time.sleep(LOOK_SECONDS)
    if sorted(client_id for _, client_id in found.values()) != list(range(num_sites)):
        raise InputError(
            f"the sites' client ids must be 0 to {num_sites - 1}, each once: "
            + ", ".join(f"{site} is {client_id}" for site, (_, client_id) in found.items())
        )
    return dict(sorted(found.items(), key=lambda item: item[1][1]))
