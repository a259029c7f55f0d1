"""Runs Flower's SuperLink, hardened, in a separate process that ends with the process that started it.

Its state is in memory. It has two listeners, both with TLS. `fleet` is for nodes: it offers the Fleet API only, and
refuses unregistered nodes before it reads what they send. `control` is for the one process that holds the token.

The SuperLink's process runs this file as a script, because importing the package would load torch, which it does not
need.
"""

import asyncio
import hmac
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, cast

import uvicorn
from fastapi import FastAPI
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink.main import create_app
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fftmoe.deploy.link.bounded_log import keep_log
from fftmoe.deploy.link.gate import Gate, GatedListener, host_and_port, listen
from fftmoe.deploy.link.link_state import CALLER, MOST_OBJECT_BYTES, LeanLinkState
from fftmoe.deploy.link.pace import Pace, TooManyWait

MAX_BODY_BYTES = 64 * 2**20  # of a request of the server's own process
SLACK_BYTES = 2**16  # of a request in addition to the object that it brings
MOST_BODY_BYTES = {"/v1/fleet/push-object": MOST_OBJECT_BYTES + SLACK_BYTES}  # Flower cuts messages into such objects
MOST_OTHER_BYTES = 2**20  # of a node's other requests, which name at most 256 objects
SUPERLINK_START_SECONDS = 60.0
STOP_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 30  # longer than clients keep an idle connection, so that none closes as it is taken up again
READY = "ready"


def _free_loopback() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@dataclass(frozen=True)
class Endpoint:
    """Says where a SuperLink listens, and the secrets that it shares with the process that started it.

    Attributes:
        fleet: host:port for nodes; the host 0.0.0.0 means all IPv4 networks of this machine.
        ca: PEM file of the certificate authority that signed `certificate`.
        certificate: PEM file; valid for the host that nodes connect to, and for 127.0.0.1.
        key: PEM file of its private key, without a passphrase.
        control: 127.0.0.1:port for the server on this machine; by default a free port.
        token: needed for every request to `control`.
        secret: needed in addition to act as Flower's ServerApp; hexadecimal.
    """

    fleet: str
    ca: Path
    certificate: Path
    key: Path
    control: str = field(default_factory=_free_loopback)
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)


def start_superlink(endpoint: Endpoint, log: Path) -> "subprocess.Popen[bytes]":
    """Start a SuperLink and wait until it listens. It ends at `stop_superlink`, or with this process.

    Args:
        log: the file to which its output is appended; it is bounded, see `keep_log`.

    Raises:
        RunError: it could not start; the message says why.
    """
    from fftmoe.errors import RunError  # not at the top: see this module's docstring
    from fftmoe.strict import exact_json

    # Without the caller's settings of Flower, some of which open further ports or ways to log in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", __file__],  # -P: files of this folder must not be imported as modules
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the caller, which still needs the SuperLink then
    )
    keep_log(cast(IO[bytes], process.stderr), log)
    stdin, report = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
    too_late = threading.Timer(SUPERLINK_START_SECONDS, process.kill)
    too_late.start()
    said = b""
    with suppress(BrokenPipeError), report:  # through a pipe, because other users can read a command line
        stdin.write(exact_json(asdict(endpoint), default=str).encode() + b"\n")
        stdin.flush()
        said = report.readline()
    too_late.cancel()
    if said.decode().strip() != READY:
        stop_superlink(process)
        silent = f"it was not ready within {SUPERLINK_START_SECONDS:g} s, or it ended; {log} may say why"
        raise RunError(f"Flower's SuperLink could not start: {said.decode().strip() or silent}")
    return process


def stop_superlink(process: "subprocess.Popen[bytes]") -> None:
    """End a SuperLink that `start_superlink` started; do nothing if it has ended already."""
    with suppress(BrokenPipeError):  # it ended before it read everything
        cast(IO[bytes], process.stdin).close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Guard:
    """Decides, before the body of a request is read, whether it may pass to Flower."""

    def __init__(self, app: FastAPI, endpoint: Endpoint, gate: Gate) -> None:
        self._app: ASGIApp = app
        self._gate, self._pace = gate, Pace()
        self._state: LeanLinkState = app.state.linkstate_factory.state()
        self._control_port = host_and_port(endpoint.control)[1]
        self._bearer = f"Bearer {endpoint.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status = await self._refusal(scope)
        if status is None:
            try:
                await self._pass(scope, receive, send)
                return
            except TooManyWait:
                status = 429
        # The rest of a refused request is not read.
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to Flower; those of one key in their turn, and with the node that the key belongs to."""
        key = Headers(scope=scope).get(FLEET_HTTP_PUBLIC_KEY_HEADER) if _is_fleet(scope) else None
        if key is None:
            await self._app(scope, _limited(receive, MAX_BODY_BYTES), send)
            return
        async with self._pace.turn(key):
            CALLER.set(self._state.get_node_id_by_public_key(b64decode(key)))
            await self._app(scope, _limited(receive, _most_bytes(scope)), send)

    async def _refusal(self, scope: Scope) -> int | None:
        """Return the status of the refusal; None if the request may pass."""
        headers, path = Headers(scope=scope), scope["path"]
        if path == "/health":
            return None
        if scope["server"][1] == self._control_port:  # the port of this end of the connection
            given = headers.get("authorization", "").encode()
            return None if hmac.compare_digest(given, self._bearer) else 401  # its listener passes no gate
        if scope["method"] != "POST" or not _is_fleet(scope):
            return 404
        if not self._state.run_ids:
            return 503  # keys are registered before the first run, so no node can be checked before it
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not length.isdecimal():
            return 411
        if int(length) > _most_bytes(scope):
            return 413
        if not await run_in_threadpool(self._knows, headers):
            return 401
        self._gate.prove(tuple(scope["client"]), headers[FLEET_HTTP_PUBLIC_KEY_HEADER])
        return None

    def _knows(self, headers: Headers) -> bool:
        """Return whether a registered node signed this. Flower checks the time and the node itself with the body."""
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            signed = headers[TIMESTAMP_HEADER].encode()
            if self._state.get_node_id_by_public_key(key) is None:
                return False
            return verify_signature(bytes_to_public_key(key), signed, signature)
        except (KeyError, ValueError):
            return False


def _is_fleet(scope: Scope) -> bool:
    return scope["path"].startswith("/v1/fleet/")


def _most_bytes(scope: Scope) -> int:
    return MOST_BODY_BYTES.get(scope["path"], MOST_OTHER_BYTES)


def _limited(receive: Receive, most: int) -> Receive:
    """Return a `receive` that reports a disconnect if the body is too long, whatever length the client declared."""
    size = 0

    async def limited() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= most else {"type": "http.disconnect"}

    return limited


def _configure(endpoint: Endpoint, gate: Gate) -> uvicorn.Config:
    app = create_app()  # Flower's HTTP application, without the gRPC servers and processes of its command
    app.state.superexec_auth_secret = bytes.fromhex(endpoint.secret)
    app.state.enable_supernode_auth = True  # nodes cannot register themselves
    factory = app.state.linkstate_factory
    factory.state_instance = LeanLinkState(factory.federation_manager, factory.objectstore_factory.store())
    config = uvicorn.Config(
        Guard(app, endpoint, gate),
        lifespan="on",
        http="h11",  # limits the header of a request; httptools does not
        ws="none",
        access_log=False,  # nodes send several requests a second
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
        ssl_certfile=endpoint.certificate,
        ssl_keyfile=endpoint.key,
    )
    try:
        config.load()
    except OSError as error:
        raise OSError(
            f"its certificate {endpoint.certificate} with the key {endpoint.key} cannot be used: {error}"
        ) from error
    return config


async def _serve_endpoint(server: uvicorn.Server, sockets: Iterable[socket.socket], report: IO[str]) -> None:
    serving = asyncio.create_task(server.serve(list(sockets)))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    with report:
        report.write(READY if server.started else "")
    await serving


def _end_with_input() -> None:
    sys.stdin.read()  # returns when the starting process has ended, for any reason
    os._exit(0)


def main() -> None:
    """Run the SuperLink's process: it reads its endpoint, reports that it is ready or why it is not, and serves."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of libraries goes to the log
    endpoint = Endpoint(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        gate = Gate()
        server = uvicorn.Server(_configure(endpoint, gate))
        sockets = [listen(endpoint.control), GatedListener.of(listen(endpoint.fleet), gate)]
    except OSError as error:
        report.write(str(error))
        report.close()
        return
    asyncio.run(_serve_endpoint(server, sockets, report))


if __name__ == "__main__":
    main()
