"""Describes the state of a deployment for its operator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fftmoe.deploy.folder import read_server
from fftmoe.deploy.link.control import list_sites
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.deploy.running import holder
from fftmoe.errors import InputError, RunError
from fftmoe.records.client_names import client_name
from fftmoe.store import Bindings, RunFolder


def describe(folder: Path) -> list[str]:
    """Return lines about the server or the site of this folder.

    Raises:
        InputError: the folder belongs to neither.
    """
    if not any((folder / name).exists() for name in ("deployment.json", "site.json")):
        raise InputError(f"{folder} is neither a server's folder nor a site's; name one that `fftmoe deploy init` made")
    facts = holder(folder)
    if facts is None:
        return [f"nothing runs from {folder}"]
    if not facts:
        return [f"a process is starting in {folder}, or ending; look again in a moment"]
    if (folder / "site.json").exists():
        return [f"process {facts.get('pid')} serves {facts.get('address')} with the data in {facts.get('data')}"]
    return [f"process {facts.get('pid')} runs {facts.get('output')}", *last_round(facts), *_site_lines(folder, facts)]


def last_round(facts: Mapping[str, Any]) -> list[str]:
    """Return the last round of the server's run, and its faults."""
    output = Path(str(facts.get("output")))
    rows, began = RunFolder(output).all_metrics(), Bindings.read(output)
    names = began.values.get("population", {}).get("names") if began is not None else None
    if not rows:
        return ["no round is finished yet"]
    row = rows[-1]
    metric = row.get("metric", "accuracy")
    measured = "" if row[metric] is None else f", {metric.replace('_', ' ')} {row[metric]:.3f}"
    faults = [
        f"  {fault['kind']}: client {client_name(fault['client_id'], names)} ({fault['reason']})"
        for fault in row.get("faults", ())
    ]
    return [f"round {row['round']} is finished{measured}", *faults]


def _site_lines(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """Return the sites, and whether they are connected."""
    server = read_server(folder)
    endpoint = Endpoint(
        server.deployment.address,
        folder / "ca.crt",
        folder / "server.crt",
        folder / "server.key",
        control=str(facts.get("control")),
        token=str(facts.get("token")),
    )
    try:
        online = list_sites(endpoint)
    except RunError as error:
        return [f"the sites' status is not available: {error}"]
    return [f"site {site}: {online.get(site, 'not registered yet')}" for site in server.deployment.sites]
