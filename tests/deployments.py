"""Folders of deployments for tests: their expected files, new certificates, edits, and a TLS handshake in memory."""

import json
import ssl
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fftmoe.deploy.folder import read_server, read_site
from fftmoe.deploy.keys import Certified, make_authority, make_server_certificate
from fftmoe.errors import InputError

ADDRESS = "fl.example.org:9092"
SITES = ("hospital-b", "hospital-a", "3")
NOW = datetime.now(UTC)
PRIVATE = {"ca/ca.key", "server/server.key", *(f"sites/{name}/node.key" for name in SITES)}
PUBLIC = {
    "README.md",
    "ca/ca.crt",
    "deployment.json",
    *(f"server/{name}" for name in ("ca.crt", "server.crt", "deployment.json")),
    *(f"server/sites/{name}.pub" for name in SITES),
    *(f"sites/{name}/{file}" for name in SITES for file in ("ca.crt", "site.json")),
}
READERS = {"server": read_server, "site": read_site}  # by the fixture of a folder
FACTS = {"server": "deployment.json", "site": "site.json"}
Result = TypeVar("Result")


def files_in(folder: Path) -> dict[str, int]:
    """Every file below the folder, and its mode."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()
    }


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def certify(folder: Path, days: int = 30, start: datetime = NOW, host: str = "fl.example.org") -> Certified:
    """Put a new authority and a new server certificate in place of the old ones."""
    authority = make_authority(days, start)
    certificate = make_server_certificate(authority, host, days, start)
    (folder / "ca.crt").write_bytes(authority.certificate)
    (folder / "server.crt").write_bytes(certificate.certificate)
    (folder / "server.key").write_bytes(certificate.key)
    return authority


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(function: Callable[[Any], Result], argument: object) -> Result | str:
    """What the function returns, or the message with which it refuses its argument."""
    try:
        return function(argument)
    except InputError as error:
        return str(error)


def handshake(folder: Path, ca: Path, host: str) -> None:
    """A TLS handshake of the server in `folder` and a client that trusts `ca` and calls `host`, in memory."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(folder / "server.crt", folder / "server.key")
    client_side = ssl.create_default_context(cafile=str(ca))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    waiting = [
        client_side.wrap_bio(to_client, to_server, server_hostname=host),
        server_side.wrap_bio(to_server, to_client, server_side=True),
    ]
    while waiting:
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
