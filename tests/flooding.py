"""A registered node that asks, answers and uploads without end, for tests of the server's doors.

As a script it is such a node, in a process of its own, until its standard input ends; then it prints what it got back.
"""

import hashlib
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, cast

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supernode.fleet_http_client import FleetHttpClient

from fftmoe.deploy.link.superlink import Endpoint
from flower_link import Key, activation, signing

OBJECT_BYTES = 5 * 2**20
THREADS = 24  # more than the connections that a key may have
DOES = {
    "pull": "ask for work",
    "beat": "send heartbeats",
    "answer_again": "announce an answer again with other objects",
    "grow": "announce an answer again, and send another object of 5 MiB each time",
    "as_another": "answer in another site's name",
    "too_large": "send requests of 64 MiB",
}
KINDS = tuple(DOES)


def chunk(number: int) -> tuple[str, bytes]:
    """An object that Flower takes, of 5 MiB, and its name."""
    content = number.to_bytes(8, "big") * (OBJECT_BYTES // 8)
    whole = b"ArrayChunk  " + str(len(content)).encode() + b"\0" + content
    return hashlib.sha256(whole).hexdigest(), whole


class Flooder:
    """Does one thing without end in several threads, and counts what it got back.

    Args:
        other: the node in whose name it answers, if it does so.
        node: that another process with this key has activated; 0 to activate one.
    """

    def __init__(self, endpoint: Endpoint, key: Key, other: int, node: int = 0) -> None:
        self._endpoint, self._key, self._other = endpoint, key, other
        self.counts: Counter[str] = Counter()
        self._done = threading.Event()
        self._numbers = itertools.count()
        self.asked: Message | None = None
        self._activates = not node
        with signing(endpoint, key) as client:
            self.node = Node(node_id=node or client.ActivateNode(activation(key)).node_id)

    def flood(self, kind: str, threads: int, until: Callable[[], object]) -> None:
        """Do this in so many threads until the call returns."""
        own = [threading.Thread(target=self._repeat, args=(getattr(self, kind),)) for _ in range(threads)]
        for thread in own:
            thread.start()
        until()
        self._done.set()
        for thread in own:
            thread.join()
        if self._activates:
            with signing(self._endpoint, self._key) as client:
                client.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))

    def _repeat(self, what: Callable[[FleetHttpClient], object]) -> None:
        while not self._done.is_set():
            with suppress(httpx.HTTPError), signing(self._endpoint, self._key) as client:
                client._client.timeout = httpx.Timeout(40.0)
                while not self._done.is_set():
                    self._once(what, client)

    def _once(self, what: Callable[[FleetHttpClient], object], client: FleetHttpClient) -> None:
        try:
            what(client)
            self.counts["answered"] += 1
        except httpx.HTTPStatusError as error:
            self.counts[f"HTTP {error.response.status_code}"] += 1

    # What it does

    def pull(self, client: FleetHttpClient) -> None:
        """Ask for work; remember the first request that comes."""
        found = client.PullMessages(PullMessagesRequest(node=self.node))
        if found.messages_list and self.asked is None:
            self.asked = message_from_proto(found.messages_list[0])

    def beat(self, client: FleetHttpClient) -> None:
        """Say that it is there."""
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=30))

    def answer_again(self, client: FleetHttpClient) -> None:
        """Answer the same request once more, each time with other objects of 5 MiB under the same name."""
        if self.asked is None:
            self.pull(client)
            return
        answer = Message(RecordDict(), reply_to=self.asked)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        self._announce(client, remove_content_from_message(answer), get_object_tree(answer))

    def grow(self, client: FleetHttpClient) -> None:
        """Announce one answer again and again, each time with another object of 5 MiB, and send the object."""
        if self.asked is None:
            self.pull(client)
            return
        answer = Message(RecordDict(), reply_to=self.asked)
        root = hashlib.sha256(self.asked.metadata.message_id.encode()).hexdigest()
        answer.metadata.__dict__["_message_id"] = root
        name, content = chunk(next(self._numbers))
        tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=name)])
        self._announce(client, remove_content_from_message(answer), tree, {name: content})

    def as_another(self, client: FleetHttpClient) -> None:
        """Answer in the name of another node."""
        if self.asked is None:
            self.pull(client)
            return
        answer = Message(RecordDict(), reply_to=self.asked)
        answer.metadata.__dict__["_src_node_id"] = self._other
        answer.metadata.__dict__["_message_id"] = answer.object_id
        self._announce(client, remove_content_from_message(answer), get_object_tree(answer))

    def _announce(
        self, client: FleetHttpClient, message: Message, tree: ObjectTree, parts: dict[str, bytes] | None = None
    ) -> None:
        request = PushMessagesRequest(
            node=self.node, messages_list=[message_to_proto(message)], message_object_trees=[tree]
        )
        found = client.PushMessages(request)
        for name in found.objects_to_push:
            if parts and name in parts:
                stored = client.PushObject(
                    PushObjectRequest(
                        node=self.node,
                        run_id=message.metadata.run_id,
                        session_id=found.session_id,
                        object_id=name,
                        object_content=parts[name],
                    )
                ).stored
                self.counts["objects stored"] += stored

    def too_large(self, client: FleetHttpClient) -> None:
        """Send a request of 64 MiB."""
        content = bytes(64 * 2**20)
        client.PushObject(PushObjectRequest(node=self.node, object_id="0" * 64, object_content=content))


def resident_mib(process: int) -> float:
    """The resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def connections_to(address: str) -> int:
    """How many established connections the listener's side of this machine holds."""
    port = int(address.rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def soon_at_most(measure: Callable[[], int], most: int, seconds: float = 40.0) -> int:
    """What is measured, once it is at most `most`, or after a while; cut connections take a moment to be closed."""
    ends = time.monotonic() + seconds
    while (found := measure()) > most and time.monotonic() < ends:
        time.sleep(0.2)
    return found


@contextmanager
def endless_headers(endpoint: Endpoint, number: int) -> Iterator[Counter[str]]:
    """So many strangers that send the headers of a request without end, a line each fifth of a second.

    The counter says how many were cut off before the end of the block.
    """
    context = ssl.create_default_context(cafile=endpoint.ca)
    host, _, port = endpoint.fleet.rpartition(":")
    counts, done = Counter[str](), threading.Event()

    def trickle(connections: list[ssl.SSLSocket]) -> None:
        lines = itertools.count()
        while not done.wait(0.2):
            for connection in list(connections):
                try:
                    connection.sendall(f"x-{next(lines)}: y\r\n".encode())
                except OSError:
                    counts["cut off"] += 1
                    connections.remove(connection)

    with ExitStack() as stack:
        found: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=trickle, args=(found,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        for _ in range(number):
            try:
                plain = stack.enter_context(socket.create_connection((host, int(port)), 40.0))
                one = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                one.sendall(b"POST /api/v0/fleet/pull-messages HTTP/1.1\r\nhost: localhost\r\n")
            except OSError:
                counts["cut off"] += 1
                continue
            found.append(one)
        yield counts


@contextmanager
def flooding(endpoint: Endpoint, key: Path, kind: str, other: int, node: int = 0) -> Iterator[Counter[str]]:
    """A process that floods until the end of the block; then the counter has what it got back."""
    command = [sys.executable, __file__, endpoint.fleet, endpoint.ca, key, kind, other, node]
    process = subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    counts = Counter[str]()
    with process:
        try:
            assert cast(IO[str], process.stdout).readline() == "floods\n"
            yield counts
            counts.update(json.loads(process.communicate("", 60.0)[0]))
        finally:
            process.kill()


def main(fleet: str, ca: str, key: str, kind: str, other: str, node: str) -> None:
    endpoint = Endpoint(fleet, Path(ca), Path(), Path())
    flooder = Flooder(endpoint, cast(Key, load_ssh_private_key(Path(key).read_bytes(), None)), int(other), int(node))
    print("floods", flush=True)
    flooder.flood(kind, THREADS, sys.stdin.read)
    print(json.dumps(flooder.counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
