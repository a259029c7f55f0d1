"""Runs the server of a federation: it starts a SuperLink, which the sites connect to, and runs one recipe."""

import hashlib
from ipaddress import IPv6Address
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fftmoe.deploy.address import is_loopback, parse_address
from fftmoe.deploy.certificates import expiry_warning
from fftmoe.deploy.federation import prepare, run_over_sites
from fftmoe.deploy.folder import ServerFolder, read_server
from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.superlink import Endpoint, start_superlink, stop_superlink
from fftmoe.deploy.running import running
from fftmoe.report.progress import Progress
from fftmoe.setup.deployment import Recipe
from fftmoe.setup.run import Result

LOG_FILE = "superlink.log"


def run_server(
    folder: Path,
    recipe: Recipe,
    output: Path,
    wait_seconds: float,
    progress: Progress,
    accept_changes: bool = False,
) -> Result:
    """Run the recipe over the sites of this deployment, or continue the interrupted run in `output`.

    Connections always use TLS and registered keys.

    Args:
        folder: the folder `server` of the deployment.
        recipe: passed on to `setup/`, the only package that reads it.
        wait_seconds: how long to wait for the sites.
        accept_changes: continue although test rows, backbone, keys or versions are not those of the beginning.

    Raises:
        InputError: the folder, the recipe or the output cannot be used. RunError: the run failed.
    """
    server = read_server(folder)
    if warning := expiry_warning(server.certificate, "the server's certificate"):
        progress.say(warning)
    keys = keys_of(server)
    fingerprints = {site: hashlib.sha256(key).hexdigest()[:16] for site, key in keys.items()}
    prepared = prepare(recipe, output, progress, fingerprints, accept_changes)
    endpoint = endpoint_of(server)
    facts = {"output": str(output.absolute()), "control": endpoint.control, "token": endpoint.token}
    with running(folder, facts):
        superlink = start_superlink(endpoint, folder / LOG_FILE)
        try:
            progress.say(f"listening on {endpoint.fleet}; sites connect to {server.deployment.address}")
            with open_grid(endpoint, keys) as (grid, nodes):
                client_ids = {site: client_id for client_id, site in enumerate(server.deployment.sites)}
                return run_over_sites(grid, prepared, nodes, client_ids, wait_seconds, progress)
        finally:
            stop_superlink(superlink)


def endpoint_of(server: ServerFolder) -> Endpoint:
    """Return where the SuperLink listens: on the loopback if the sites' address is there, otherwise on all networks."""
    address, folder = server.deployment.address, server.folder
    host, port = parse_address(address).host, parse_address(address).port
    everywhere = "[::]" if isinstance(host, IPv6Address) else "0.0.0.0"
    fleet = address if is_loopback(address) else f"{everywhere}:{port}"
    return Endpoint(fleet, folder / "ca.crt", folder / "server.crt", folder / "server.key")


def keys_of(server: ServerFolder) -> dict[str, bytes]:
    """Return the public key of each site in OpenSSH format."""
    keys = zip(server.deployment.sites, server.public_keys, strict=True)
    return {site: key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for site, key in keys}
