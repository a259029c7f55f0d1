"""Makes the folder of a deployment, and reads the parts that the server and each site get."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from fftmoe.deploy.address import parse_address
from fftmoe.deploy.certificates import (
    check_server_certificate,
    check_server_key,
    load_authority,
    load_certificate,
)
from fftmoe.deploy.files import (
    PRIVATE_FILE,
    check_new,
    damaged,
    json_bytes,
    make_private_folder,
    read_bytes,
    read_fields,
    whole_folder,
    write_new,
)
from fftmoe.deploy.guide import guide
from fftmoe.deploy.keys import Certified, SiteKey, make_authority, make_server_certificate, make_site_key
from fftmoe.deploy.names import check_sites
from fftmoe.deploy.site_keys import read_public_keys, read_site_key
from fftmoe.errors import InputError
from fftmoe.shown import count_of

MAX_DAYS = 3650


@dataclass(frozen=True)
class Deployment:
    """Holds the public facts: the server's `host:port`, and the sites' names in the order of their client ids."""

    address: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class ServerFolder:
    """Describes the server's folder, after all checks.

    Attributes:
        ca, certificate, key: PEM bytes of `ca.crt`, `server.crt` and `server.key`.
        public_keys: the key of client i at index i.
    """

    folder: Path
    deployment: Deployment
    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    public_keys: tuple[ec.EllipticCurvePublicKey, ...] = field(repr=False)


@dataclass(frozen=True)
class SiteFolder:
    """Describes a site's folder, after all checks.

    Attributes:
        ca: PEM bytes of `ca.crt`. key: the private key of `node.key`.
    """

    folder: Path
    name: str
    client_id: int
    address: str
    ca: bytes = field(repr=False)
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def create_deployment(folder: Path, address: str, sites: Sequence[str], days: int) -> None:
    """Make the folder of a new deployment, with new keys and with certificates that are valid for `days` days.

    Raises:
        InputError: an argument cannot be used, or `folder` is neither new nor empty. Nothing has been changed.
        OutputError: the folder cannot be written. Nothing is left behind.
    """
    host = parse_address(address).host
    check_sites(sites)
    if not 1 <= days <= MAX_DAYS:
        raise InputError(f"certificates cannot be valid for {count_of(days, 'day')}; give --days from 1 to {MAX_DAYS}")
    place = check_new(folder)  # before the keys are made, which takes a while for many sites
    now = datetime.now(UTC)
    authority = make_authority(days, now)
    server = make_server_certificate(authority, host, days, now)
    keys = {site: make_site_key() for site in sites}
    text = guide(place.name, address, sites, now + timedelta(days=days))
    with whole_folder(folder) as temporary:
        for name in ("ca", "server", "server/sites", "sites"):
            make_private_folder(temporary / name)
        write_new(temporary / "README.md", text.encode())
        write_new(temporary / "deployment.json", json_bytes({"address": address, "sites": list(sites)}))
        write_new(temporary / "ca" / "ca.crt", authority.certificate)
        write_new(temporary / "ca" / "ca.key", authority.key, PRIVATE_FILE)
        _write_server(temporary / "server", address, authority.certificate, server, keys)
        for client_id, (name, key) in enumerate(keys.items()):
            site = {"name": name, "client_id": client_id, "address": address}
            _write_site(temporary / "sites" / name, site, authority.certificate, key)


def read_server(folder: Path) -> ServerFolder:
    """Read `FOLDER/server`, or a copy of it.

    Raises:
        InputError: a file is missing, damaged, from another deployment or open to other users; a certificate is not
            valid today or not for the address; a site has no key or the key of another. The message says what to do.
    """
    _check_kind(folder, "deployment.json", "the server's folder", "server/")
    fields = read_fields(folder / "deployment.json", {"address": str, "sites": list})
    try:
        host = parse_address(fields["address"]).host
        check_sites(fields["sites"])
    except InputError as error:
        raise damaged(folder / "deployment.json", str(error)) from error
    deployment = Deployment(fields["address"], tuple(fields["sites"]))
    ca, certificate = (read_bytes(folder / name) for name in ("ca.crt", "server.crt"))
    key = read_bytes(folder / "server.key", private=True)
    authority = load_authority(folder / "ca.crt", ca)
    loaded = load_certificate(folder / "server.crt", certificate)
    check_server_certificate(folder / "server.crt", loaded, authority, host)
    check_server_key(folder / "server.key", key, loaded)
    public_keys = read_public_keys(folder / "sites", deployment.sites)
    return ServerFolder(folder, deployment, ca, certificate, key, public_keys)


def read_site(folder: Path) -> SiteFolder:
    """Read `FOLDER/sites/<name>`, or a copy of it.

    Raises:
        InputError: a file is missing, damaged or open to other users, or the certificate is not valid today. The
            message says what to do.
    """
    _check_kind(folder, "site.json", "a site's folder", "sites/<name>/")
    fields = read_fields(folder / "site.json", {"name": str, "client_id": int, "address": str})
    try:
        parse_address(fields["address"])
        check_sites([fields["name"]])
    except InputError as error:
        raise damaged(folder / "site.json", str(error)) from error
    if fields["client_id"] < 0:
        raise damaged(folder / "site.json", f"client_id is {fields['client_id']} and should be 0 or more")
    ca = read_bytes(folder / "ca.crt")
    load_authority(folder / "ca.crt", ca)
    key = read_site_key(folder / "node.key")
    return SiteFolder(folder, fields["name"], fields["client_id"], fields["address"], ca, key)


def _check_kind(folder: Path, file: str, what: str, which: str) -> None:
    """Refuse another folder of the deployment than the one that is needed."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(f"cannot open the folder {folder}: {error.strerror}; pass {what}") from error
    if "server" in names:  # the whole deployment has a deployment.json too
        raise InputError(f"{folder} is a whole deployment, not {what}; pass its {which}")
    if file not in names:
        raise InputError(
            f"{folder} is not {what}: it has no {file}; pass {which} from the folder that `fftmoe deploy init` made"
        )


def _write_site(folder: Path, site: Mapping[str, Any], ca: bytes, key: SiteKey) -> None:
    make_private_folder(folder)
    write_new(folder / "site.json", json_bytes(site))
    write_new(folder / "ca.crt", ca)
    write_new(folder / "node.key", key.private, PRIVATE_FILE)


def _write_server(folder: Path, address: str, ca: bytes, server: Certified, keys: dict[str, SiteKey]) -> None:
    write_new(folder / "deployment.json", json_bytes({"address": address, "sites": list(keys)}))
    write_new(folder / "ca.crt", ca)
    write_new(folder / "server.crt", server.certificate)
    write_new(folder / "server.key", server.key, PRIVATE_FILE)
    for name, key in keys.items():
        write_new(folder / "sites" / f"{name}.pub", key.public)
