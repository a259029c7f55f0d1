"""A server, its SuperLink and its nodes on this machine: who is let in, what is lost, and what comes back."""

import datetime as dt
import http.server
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple, cast

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID
from flwr.app import Context, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.node import serve_node
from fftmoe.deploy.link.superlink import Endpoint, LeanLinkState, start_superlink, stop_superlink
from fftmoe.engines.base import Fault, Reply
from fftmoe.engines.flower import FlowerEngine, ask
from fftmoe.engines.flower_messages import JobValues, make_client_app
from fftmoe.errors import InputError, RunError

pytestmark = [pytest.mark.network, pytest.mark.slow]

Key = ec.EllipticCurvePrivateKey
JOB = {"seed": 3}
TRIES = 20
SOON = 40.0  # seconds; for what takes a few, on a busy machine
LARGE = 100 * 2**20  # bytes, more than a node may send at once
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


def connected(grid: Grid, nodes: Mapping[str, int]) -> set[str]:
    """The sites whose nodes are connected now; a node that is cut off counts as connected for another minute."""
    here = set(grid.get_node_ids())
    return {name for name, node in nodes.items() if node in here}


# The rest of this section runs in other processes: this file is their script.


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
    """Until the test's process ends."""
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


# Keys and certificates.


class Authority(NamedTuple):
    """The certificate of an authority, and one that it signed for this machine, as PEM files."""

    ca: Path
    certificate: Path
    key: Path


def make_authority(folder: Path) -> Authority:
    folder.mkdir()
    files = Authority(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("an authority", "localhost")]
    hosts = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = dt.datetime.now(dt.UTC)
    for place, file in enumerate((files.ca, files.certificate)):
        builder = (
            x509.CertificateBuilder(names[0], names[place], keys[place].public_key(), x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=place == 0, path_length=None), critical=True)
            .add_extension(hosts, critical=False)
        )
        file.write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(Encoding.PEM))
    files.key.write_bytes(keys[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("papers") / "ours")


def make_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def publics(keys: Mapping[str, Key]) -> dict[str, bytes]:
    return {n: key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) for n, key in keys.items()}


# What runs here.


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
    """A node in a thread; gives what it says."""
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


@dataclass
class Federation:
    """A SuperLink, two nodes, and the grid between."""

    endpoint: Endpoint
    keys: dict[str, Key]
    grid: Grid
    nodes: dict[str, int]

    def engine(self, seconds: float = SOON) -> FlowerEngine:
        return FlowerEngine(self.grid, dict(enumerate(self.nodes.values())), JOB, seconds)


@pytest.fixture(scope="module")
def federation(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation")
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key(), "b": make_key()}
    with ExitStack() as stack:
        stack.enter_context(superlink(endpoint, folder))
        for name, key in keys.items():
            stack.enter_context(node_here(endpoint, key, folder / name))
        grid, nodes = stack.enter_context(open_grid(endpoint, publics(keys)))
        soon(lambda: connected(grid, nodes) == {"a", "b"})
        yield Federation(endpoint, keys, grid, nodes)


def signing(endpoint: Endpoint, key: Key, *, plain: bool = False) -> FleetHttpClient:
    ca = None if plain else endpoint.ca.read_bytes()
    signature = NodeAuthHttpInterceptor(key, key.public_key())
    return FleetHttpClient.from_server_address(endpoint.fleet, plain, ca, [signature])


def activation(key: Key) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30)


# Messages.


def test_messages_go_and_come_back(federation: Federation):
    engine = federation.engine()
    assert engine.absent() == set()
    profiles = ask(federation.grid, list(federation.nodes.values()), JOB, SOON)
    assert profiles == {node: {"site": name} for name, node in federation.nodes.items()}
    large = os.urandom(11 * 2**20)  # three of Flower's chunks
    for messages in ((b"ab", b"cd"), (b"", b"ef"), (large, large[::-1])):
        answers = list(engine.run_clients([[(client, message)] for client, message in enumerate(messages)]))
        assert all(isinstance(answer, Reply) for answer in answers)
        assert {a.client_id: a.message for a in answers if isinstance(a, Reply)} == {
            client: message[::-1] for client, message in enumerate(messages)
        }


def test_what_a_node_raises_is_a_fault_and_the_node_goes_on(federation: Federation):
    engine = federation.engine()
    answers = sorted(engine.run_clients([[(0, b"raise")], [(1, b"ab")]]), key=lambda answer: answer.client_id)
    assert answers[0] == Fault(0, "failed", "ValueError; the node's log has the rest")
    assert isinstance(answers[1], Reply)
    assert [type(answer) for answer in engine.run_clients([[(0, b"ab")]])] == [Reply]


def test_a_node_trains_and_says_what_it_is_and_nothing_else(federation: Federation):
    message = Message(RecordDict(), dst_node_id=federation.nodes["a"], message_type="evaluate", ttl=SOON)
    [identity] = federation.grid.push_messages([message])
    answers: list[Message] = []
    soon(lambda: bool(answers.extend(federation.grid.pull_messages([identity])) or answers))
    assert answers[0].error.reason == "this node answers messages of the types train and query only"


def announce(client: FleetHttpClient, node: Node, answer: Message, header: Message) -> PushMessagesResponse:
    """Say that an answer will come, and who it is from."""
    header.metadata.__dict__["_message_id"] = answer.object_id
    request = PushMessagesRequest(
        node=node, messages_list=[message_to_proto(header)], message_object_trees=[get_object_tree(answer)]
    )
    return client.PushMessages(request)


def say_and_leave(client: FleetHttpClient, node: Node, asked: Message) -> None:
    answer = Message(RecordDict(), reply_to=asked)
    announce(client, node, answer, answer)


def lie(client: FleetHttpClient, node: Node, asked: Message) -> None:
    """The announcement is in order, and what follows is in the name of another node."""
    header, answer = Message(RecordDict(), reply_to=asked), Message(RecordDict(), reply_to=asked)
    answer.metadata.__dict__["_src_node_id"] += 1
    found = announce(client, node, answer, header)
    for object_id, part in get_all_nested_objects(answer).items():
        push = PushObjectRequest(
            node=node,
            run_id=asked.metadata.run_id,
            session_id=found.session_id,
            object_id=object_id,
            object_content=part.deflate(),
        )
        assert client.PushObject(push).stored


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (say_and_leave, Fault(1, "late", "no answer within 10 s")),  # Flower would wait for it for three minutes
        (lie, Fault(1, "failed", "its answer cannot be read")),
    ],
)
def test_a_site_that_answers_badly_harms_itself_alone(
    answer: Callable[[FleetHttpClient, Node, Message], None], fault: Fault, authority: Authority, tmp_path: Path
):
    endpoint, keys = Endpoint(free_address(), *authority), {"good": make_key(), "bad": make_key()}

    def serve() -> None:
        while not (found := client.PullMessages(PullMessagesRequest(node=node))).messages_list:
            time.sleep(0.05)
        answer(client, node, message_from_proto(found.messages_list[0]))

    with (
        superlink(endpoint, tmp_path),
        node_here(endpoint, keys["good"], tmp_path / "good"),
        open_grid(endpoint, publics(keys)) as (grid, nodes),
        signing(endpoint, keys["bad"]) as client,
    ):
        node = Node(node_id=client.ActivateNode(activation(keys["bad"])).node_id)
        soon(lambda: connected(grid, nodes) == {"good", "bad"})
        thread = threading.Thread(target=serve)
        thread.start()
        engine = FlowerEngine(grid, dict(enumerate(nodes.values())), JOB, 10.0)
        answers = sorted(engine.run_clients([[(0, b"ab")], [(1, b"cd")]]), key=lambda answer: answer.client_id)
        thread.join()
    assert isinstance(answers[0], Reply)
    assert answers[1:] == [fault]
    assert not (tmp_path / "good").exists()  # a node that takes its leave has nothing to take back


# What dies, and comes back.


def test_a_node_that_was_killed_serves_the_next_round(authority: Authority, tmp_path: Path):
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key(), "b": make_key()}
    (tmp_path / "key").write_bytes(keys["b"].private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    arguments = ("node", endpoint.fleet, endpoint.ca, tmp_path / "key", tmp_path / "b")
    answers: list[Reply | Fault] = []
    with (
        superlink(endpoint, tmp_path),
        node_here(endpoint, keys["a"], tmp_path / "a"),
        open_grid(endpoint, publics(keys)) as (grid, nodes),
    ):
        engine = FlowerEngine(
            grid, dict(enumerate(nodes.values())), JOB, 3 * SOON
        )  # long, as the lost message must not wait for it
        with script(*arguments) as process:
            wait_for(process, "connected")
            round_ = threading.Thread(target=lambda: answers.extend(engine.run_clients([[(0, b"ab")], [(1, b"hang")]])))
            round_.start()
            wait_for(process, "hanging")  # at the exit it is killed
        with script(*arguments) as process:
            wait_for(process, "connected")  # at once, although the SuperLink has not noticed the end of the first
            round_.join()
            assert isinstance(answers[0], Reply)
            assert [(a.client_id, a.kind) for a in answers[1:] if isinstance(a, Fault)] == [(1, "failed")]
            again = list(engine.run_clients([[(0, b"ab")], [(1, b"cd")]]))
            assert {(a.client_id, a.message) for a in again if isinstance(a, Reply)} == {(0, b"ba"), (1, b"dc")}


def test_nodes_come_back_to_a_superlink_that_was_killed(authority: Authority, tmp_path: Path):
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key()}
    with node_here(endpoint, keys["a"], tmp_path / "a") as said:
        with superlink(endpoint, tmp_path) as process:
            with open_grid(endpoint, publics(keys)) as (grid, first):
                soon(lambda: connected(grid, first) == {"a"})
                process.kill()
                with pytest.raises(RunError, match="it does not run any more"):
                    grid.get_node_ids()
        with superlink(endpoint, tmp_path), open_grid(endpoint, publics(keys)) as (grid, second):
            soon(lambda: connected(grid, second) == {"a"})
            [answer] = FlowerEngine(grid, {0: second["a"]}, JOB, SOON).run_clients([[(0, b"ab")]])
            assert isinstance(answer, Reply)
        assert first != second
    assert [line.split(" the server")[0] for line in said[:3]] == ["waiting for", "connected to", "lost"]
    assert said[3:] == [f"the server at {endpoint.fleet} is back"]


def test_the_superlink_ends_with_its_server(authority: Authority, tmp_path: Path):
    address = free_address()
    host, _, port = address.partition(":")
    with script("superlink", address, *authority, tmp_path / "log") as process:
        wait_for(process, "started")
        socket.create_connection((host, int(port))).close()

    def gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) != 0

    soon(gone)  # the server was killed; it had no time to say anything


def test_a_superlink_that_cannot_start_says_why(authority: Authority, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for endpoint in (Endpoint(address, *authority), Endpoint(free_address(), *authority, control=address)):
            with pytest.raises(RunError, match=f"cannot listen on {address}.*choose another port"):
                start_superlink(endpoint, tmp_path / "log")
    other = make_authority(tmp_path / "other")
    with pytest.raises(RunError, match=r"server\.pem with .*other.server\.key cannot be used"):
        start_superlink(replace(Endpoint(free_address(), *authority), key=other.key), tmp_path / "log")


def test_the_superlink_hears_how_a_run_ended(authority: Authority, tmp_path: Path):
    endpoint, keys = Endpoint(free_address(), *authority), {"a": make_key()}
    with superlink(endpoint, tmp_path):
        with pytest.raises(ZeroDivisionError), open_grid(endpoint, publics(keys)) as (_, first):
            raise ZeroDivisionError("too few sites")
        keys["b"] = make_key()
        with open_grid(endpoint, publics(keys)) as (_, second):
            pass
        found = post(endpoint.control, "v1/control/list-runs", endpoint, bearer(endpoint.token), ListRunsRequest())
    assert second["a"] == first["a"]
    statuses = [run.status for run in ListRunsResponse.FromString(found.content).run_dict.values()]
    assert {(status.sub_status, status.details) for status in statuses} == {
        ("failed", "ZeroDivisionError: too few sites"),
        ("completed", ""),
    }


def test_what_nobody_will_fetch_does_not_stay_in_memory():
    store = InMemoryObjectStore()
    state = LeanLinkState(NoOpFederationManager(), store)
    node = state.create_node("owner", "owner", b"key", 30.0)
    assert state.activate_node(node, 30.0)
    run = state.create_run("id", "1.0.0", "hash", {}, "@none/default", None, None, "flwr-serverapp")
    keep = state.create_node("owner", "owner", b"other key", 30.0)
    assert state.activate_node(keep, 30.0)
    for receiver in (node, keep):
        message = stored_message(run, receiver)
        state.store_message_and_object_tree(message, get_object_tree(message), state.start_session(run))
    before = len(store)
    assert state.deactivate_node(node)
    assert (before, len(store), state.num_message_ins()) == (3, 2, 1)  # the messages share their empty content


def stored_message(run: int, receiver: int) -> Message:
    metadata = Metadata(
        run_id=run,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=receiver,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=SOON,
        message_type="train",
    )
    message = make_message(metadata, RecordDict())
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


# Who is let in.


def refusal(address: str, ca: Path, key: Key, memory: Path) -> str:
    arguments = (address, ca.read_bytes(), key, backwards_app(), {})
    with pytest.raises(RunError) as caught:
        serve_node(*arguments, memory=memory, stop=lambda: False, say=lambda line: None)
    return str(caught.value)


def test_an_unregistered_key_is_refused(federation: Federation, tmp_path: Path):
    for _ in range(TRIES):
        reason = refusal(federation.endpoint.fleet, federation.endpoint.ca, make_key(), tmp_path / "memory")
        assert reason.startswith(f"the server at {federation.endpoint.fleet} does not know this site's key")
    assert len(list(federation.grid.get_node_ids())) == 2


def test_a_server_of_another_authority_is_refused(federation: Federation, tmp_path: Path):
    other = make_authority(tmp_path / "other").ca
    for _ in range(TRIES):
        reason = refusal(federation.endpoint.fleet, other, federation.keys["a"], tmp_path / "memory")
        assert "has a certificate that this site does not trust (" in reason


def test_a_client_without_tls_is_refused(federation: Federation):
    key = federation.keys["a"]
    with signing(federation.endpoint, key, plain=True) as client:
        for _ in range(TRIES):
            with pytest.raises(httpx.TransportError):
                client.ActivateNode(activation(key))
            with pytest.raises(httpx.TransportError):
                httpx.post(f"http://{federation.endpoint.fleet}/v1/fleet/activate-node", trust_env=False)


def test_a_server_without_tls_is_refused(authority: Authority, tmp_path: Path):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        reason = refusal(address, authority.ca, make_key(), tmp_path / "memory")
        server.shutdown()
        thread.join()
    assert reason == f"the server at {address} does not speak TLS; check the address and the port"


def test_a_wrong_clock_is_named(federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of this thread, as if it were another machine's; the nodes' threads go by the right one."""
    right, here = time.time, threading.current_thread()

    def wrong() -> float:
        return right() + (120.0 if threading.current_thread() is here else 0.0)

    monkeypatch.setattr(time, "time", wrong)
    monkeypatch.setattr(
        "flwr.supernode.node_auth_http_interceptor.now", lambda: dt.datetime.fromtimestamp(wrong(), dt.UTC)
    )
    reason = refusal(federation.endpoint.fleet, federation.endpoint.ca, federation.keys["a"], tmp_path / "memory")
    assert "has a clock that differs by 1" in reason


# What the listeners let through.


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def post(
    address: str, path: str, endpoint: Endpoint, headers: Mapping[str, str], message: ListRunsRequest | None = None
) -> httpx.Response:
    with httpx.Client(verify=ssl.create_default_context(cafile=endpoint.ca), trust_env=False) as client:
        content = message.SerializeToString() if message else b""
        return client.post(f"https://{address}/{path}", headers={**PROTOBUF, **headers}, content=content)


def test_the_control_listener_wants_its_token(federation: Federation):
    endpoint = federation.endpoint
    calls = ("control/list-runs", "control/start-run", "control/register-node", "runtime/acquire-task")
    for path in (*(f"v1/{call}" for call in calls), "docs", "openapi.json"):
        for headers in ({}, bearer("wrong"), {"authorization": endpoint.token}):
            assert post(endpoint.control, path, endpoint, headers).status_code == 401
    assert post(endpoint.control, "v1/control/list-runs", endpoint, bearer(endpoint.token)).status_code == 200


@dataclass
class Bearer:
    token: str

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(bearer(self.token))
        return call_next(context)


def test_nobody_acts_as_the_server_without_the_secret(federation: Federation):
    endpoint = federation.endpoint
    method = "/flwr.proto.Runtime/AcquireTask"
    wrong = SuperExecAuthHttpInterceptor(master_secret=bytes(32), protected_methods={method})
    for secrets in ((), (wrong,)):
        interceptors = [RuntimeVersionHttpInterceptor("a stranger"), Bearer(endpoint.token), *secrets]
        with RuntimeHttpClient.from_server_address(
            endpoint.control, False, endpoint.ca.read_bytes(), interceptors
        ) as client:
            with pytest.raises(httpx.HTTPStatusError) as caught:
                client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            assert caught.value.response.status_code == 401


def test_the_fleet_listener_is_for_nodes_alone(federation: Federation):
    endpoint = federation.endpoint
    token = bearer(endpoint.token)
    for path in ("v1/control/list-runs", "v1/runtime/acquire-task", "v1/runtime/get-nodes", "docs", "openapi.json"):
        assert post(endpoint.fleet, path, endpoint, token).status_code == 404
    for call in ("pull-messages", "activate-node", "register-node", "push-object"):
        assert post(endpoint.fleet, f"v1/fleet/{call}", endpoint, token).status_code == 401


def test_a_node_cannot_act_for_another(federation: Federation):
    with (
        signing(federation.endpoint, federation.keys["a"]) as client,
        pytest.raises(httpx.HTTPStatusError) as caught,
    ):
        client.PullMessages(PullMessagesRequest(node=Node(node_id=federation.nodes["b"])))
    assert caught.value.response.status_code == 401


def heads(endpoint: Endpoint, *headers: str) -> bytes:
    """The first line of the answer to a request whose body is still to come."""
    host, _, port = endpoint.fleet.partition(":")
    context = ssl.create_default_context(cafile=endpoint.ca)
    with (
        socket.create_connection((host, int(port)), timeout=SOON) as plain,
        context.wrap_socket(plain, server_hostname=host) as line,
    ):
        head = ["POST /v1/fleet/push-object HTTP/1.1", f"Host: {endpoint.fleet}", *headers, "", ""]
        line.sendall("\r\n".join(head).encode())
        return line.recv(65536).split(b"\r\n")[0]


def test_a_body_that_is_too_long_is_refused_before_it_is_read(federation: Federation):
    endpoint = federation.endpoint
    assert b" 413 " in heads(endpoint, f"Content-Length: {LARGE}")
    assert b" 411 " in heads(endpoint, "Transfer-Encoding: chunked")
    assert b" 411 " in heads(endpoint)
    assert b" 401 " in heads(endpoint, "Content-Length: 7")
    key = federation.keys["a"]
    with signing(endpoint, key) as client:
        request = PushObjectRequest(node=Node(node_id=federation.nodes["a"]), object_content=bytes(LARGE))
        with pytest.raises(httpx.HTTPError) as caught:
            client.PushObject(request)
    refused = caught.value
    assert not isinstance(refused, httpx.HTTPStatusError) or refused.response.status_code == 413


@pytest.mark.parametrize("text", [b"", b"ssh-ed25519 AAAA", b"no key"])
def test_a_site_without_a_good_key_is_named(text: bytes, authority: Authority):
    with (
        pytest.raises(InputError, match="the key of site b "),
        open_grid(Endpoint(free_address(), *authority), {**publics({"a": make_key()}), "b": text}),
    ):
        pass
    twice = publics({"a": make_key()})["a"]
    with (
        pytest.raises(InputError, match="two sites have the same key"),
        open_grid(Endpoint(free_address(), *authority), {"a": twice, "b": twice}),
    ):
        pass


if __name__ == "__main__":
    {"node": run_node, "superlink": run_superlink}[sys.argv[1]](*sys.argv[2:])
