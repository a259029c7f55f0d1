"""How a deployment is doing, as told to its operator."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fftmoe.deploy.folder import read_server
from fftmoe.deploy.link.control import list_sites
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.deploy.running import holder
from fftmoe.errors import InputError, RunError


def describe(folder: Path) -> list[str]:
    """Lines about the server or the site of this folder.

    Raises:
        InputError: it is neither.
    """
    if not any((folder / name).exists() for name in ("deployment.json", "site.json")):
        raise InputError(f"{folder} is neither the server's folder nor a site's; both were made by `deploy init`")
    facts = holder(folder)
    if facts is None:
        return [f"nothing runs from {folder}"]
    if (folder / "site.json").exists():
        return [f"process {facts.get('pid')} serves {facts.get('address')} with the data in {facts.get('data')}"]
    return [f"process {facts.get('pid')} runs {facts.get('output')}", *_rounds(facts), *_sites(folder, facts)]


def _rounds(facts: Mapping[str, Any]) -> list[str]:
    """How far its run is."""
    path = Path(str(facts.get("output"))) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return ["before the first round"]
    row = json.loads(lines[-1])
    metric = row.get("metric", "accuracy")
    measured = "" if row[metric] is None else f", {metric.replace('_', ' ')} {row[metric]:.3f}"
    return [f"round {row['round']} is done{measured}", *(f"  {f['kind']}: {f}" for f in row.get("faults", ()))]


def _sites(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """Which are connected."""
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
        return [f"its sites are not known: {error}"]
    return [f"site {site}: {online.get(site, 'not registered yet')}" for site in server.deployment.sites]
