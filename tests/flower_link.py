"""A SuperLink and its nodes on this machine, in threads and in other processes, for the tests of the link to Flower.

As a script it is one of these processes: a node or a SuperLink, until the process of the test ends.
"""

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.proto.control_pb2 import ListRunsRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.serverapp import Grid
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from deployments import certify
from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.node import serve_node
from fftmoe.deploy.link.superlink import Endpoint, start_superlink, stop_superlink
from fftmoe.engines.flower import FlowerEngine
from fftmoe.engines.flower_messages import JobValues, make_client_app

Key = ec.EllipticCurvePrivateKey
JOB = {"seed": 3}
SOON = 40.0  # seconds; for what takes a few, on a busy machine
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def backwards(job: JobValues, context: Context) -> Callable[[Sequence[bytes]], list[bytes]]:
    def handle(messages: Sequence[bytes]) -> list[bytes]:
        if b"raise" in messages:
            raise ValueError("a row of data that nobody may see")
        if b"hang" in messages:
            print("hanging", flush=True)
            time.sleep(600.0)
        return [message[::-1] for message in messages]

    return handle


def backwards_app() -> ClientApp:
    return make_client_app(backwards, lambda job, context: {"site": context.node_config["site"]})


def run_node(fleet: str, ca: str, key: str, memory: str) -> None:
    """Serve as a node until the process of the test ends."""
    private, parent = cast(Key, load_ssh_private_key(Path(key).read_bytes(), None)), os.getppid()
    serve_node(
        fleet,
        Path(ca).read_bytes(),
        private,
        backwards_app(),
        {"site": "b"},
        memory=Path(memory),
        stop=lambda: os.getppid() != parent,
        say=lambda line: print(line, flush=True),
    )


def run_superlink(fleet: str, ca: str, certificate: str, key: str, log: str) -> None:
    start_superlink(Endpoint(fleet, Path(ca), Path(certificate), Path(key)), Path(log))
    print("started", flush=True)
    time.sleep(600.0)


@contextmanager
def script(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    for line in cast(IO[str], process.stdout):
        if text in line:
            return
    pytest.fail(f"the process ended without {text!r}")


class Authority(NamedTuple):
    """The certificate of an authority, and one that it signed for this machine, as files."""

    ca: Path
    certificate: Path
    key: Path


def new_authority(folder: Path) -> Authority:
    folder.mkdir()
    certify(folder, host="localhost")
    return Authority(*(folder / name for name in ("ca.crt", "server.crt", "server.key")))


def make_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def publics(keys: Mapping[str, Key]) -> dict[str, bytes]:
    return {n: key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for n, key in keys.items()}


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def superlink(endpoint: Endpoint, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = start_superlink(endpoint, folder / "superlink.log")
    try:
        yield process
    finally:
        stop_superlink(process)


@contextmanager
def node_here(endpoint: Endpoint, key: Key, memory: Path) -> Iterator[list[str]]:
    """A node in a thread; yields what it says."""
    said: list[str] = []
    done = threading.Event()

    def serve() -> None:
        arguments = (endpoint.fleet, endpoint.ca.read_bytes(), key, backwards_app(), {"site": memory.name})
        serve_node(*arguments, memory=memory, stop=done.is_set, say=said.append)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield said
    finally:
        done.set()
        thread.join()


def soon(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


def connected(grid: Grid, nodes: Mapping[str, int]) -> set[str]:
    """The sites whose nodes are connected now; a node that is cut off counts as connected for another minute."""
    here = set(grid.get_node_ids())
    return {name for name, node in nodes.items() if node in here}


@dataclass
class Link:
    """A SuperLink, its nodes, and the grid between server and nodes.

    `keys` and `nodes` have those that are registered, of which some may not be here.
    """

    process: "subprocess.Popen[bytes]"
    endpoint: Endpoint
    keys: dict[str, Key]
    grid: Grid
    nodes: dict[str, int]

    def engine(self, seconds: float = SOON) -> FlowerEngine:
        return FlowerEngine(self.grid, dict(enumerate(self.nodes.values())), JOB, seconds)


@contextmanager
def open_link(
    authority: Authority, folder: Path, names: str = "ab", registered: Mapping[str, Key] | None = None
) -> Iterator[Link]:
    """A link with these nodes, and others that are only registered."""
    endpoint, here = Endpoint(free_address(), *authority), {name: make_key() for name in names}
    keys = {**here, **(registered or {})}
    with ExitStack() as stack:
        process = stack.enter_context(superlink(endpoint, folder))
        for name, key in here.items():
            stack.enter_context(node_here(endpoint, key, folder / name))
        grid, nodes = stack.enter_context(open_grid(endpoint, publics(keys)))
        soon(lambda: connected(grid, nodes) == here.keys())
        yield Link(process, endpoint, keys, grid, nodes)


def signing(endpoint: Endpoint, key: Key, *, plain: bool = False) -> FleetHttpClient:
    ca = None if plain else endpoint.ca.read_bytes()
    signature = NodeAuthHttpInterceptor(key, key.public_key())
    return FleetHttpClient.from_server_address(endpoint.fleet, plain, ca, [signature])


def activation(key: Key) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def post(
    address: str, path: str, endpoint: Endpoint, headers: Mapping[str, str], message: ListRunsRequest | None = None
) -> httpx.Response:
    with httpx.Client(verify=ssl.create_default_context(cafile=endpoint.ca), trust_env=False) as client:
        content = message.SerializeToString() if message else b""
        return client.post(f"https://{address}/{path}", headers={**PROTOBUF, **headers}, content=content)


if __name__ == "__main__":
    {"node": run_node, "superlink": run_superlink}[sys.argv[1]](*sys.argv[2:])
