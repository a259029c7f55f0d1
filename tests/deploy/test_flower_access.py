"""Who is let in by a SuperLink or trusted by a node, and which requests its listeners let through."""

import datetime as dt
import http.server
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient

from fftmoe.deploy.link.link import open_grid
from fftmoe.deploy.link.node import serve_node
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.errors import InputError, RunError
from flower_link import (
    SOON,
    Authority,
    Key,
    Link,
    activation,
    backwards_app,
    bearer,
    free_address,
    make_key,
    new_authority,
    post,
    publics,
    signing,
)

pytestmark = [pytest.mark.network, pytest.mark.slow]

TRIES = 20
LARGE = 100 * 2**20  # bytes, more than a node may send in one message


def refusal(address: str, ca: Path, key: Key, memory: Path) -> str:
    arguments = (address, ca.read_bytes(), key, backwards_app(), {})
    with pytest.raises(RunError) as caught:
        serve_node(*arguments, memory=memory, stop=lambda: False, say=lambda line: None)
    return str(caught.value)


def test_an_unregistered_key_is_refused(link: Link, tmp_path: Path):
    for _ in range(TRIES):
        reason = refusal(link.endpoint.fleet, link.endpoint.ca, make_key(), tmp_path / "memory")
        assert reason.startswith(f"the server at {link.endpoint.fleet} does not know this site's key")
    assert len(list(link.grid.get_node_ids())) == 2


def test_a_server_of_another_authority_is_refused(link: Link, tmp_path: Path):
    other = new_authority(tmp_path / "other").ca
    for _ in range(TRIES):
        reason = refusal(link.endpoint.fleet, other, link.keys["a"], tmp_path / "memory")
        assert "has a certificate that this site does not trust (" in reason


def test_a_client_without_tls_is_refused(link: Link):
    key = link.keys["a"]
    with signing(link.endpoint, key, plain=True) as client:
        for _ in range(TRIES):
            with pytest.raises(httpx.TransportError):
                client.ActivateNode(activation(key))
            with pytest.raises(httpx.TransportError):
                httpx.post(f"http://{link.endpoint.fleet}/v1/fleet/activate-node", trust_env=False)


def test_a_server_without_tls_is_refused(authority: Authority, tmp_path: Path):
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        reason = refusal(address, authority.ca, make_key(), tmp_path / "memory")
        server.shutdown()
        thread.join()
    assert reason == f"the server at {address} does not speak TLS; check the address and the port"


def test_a_wrong_clock_is_named(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """This thread's clock is wrong, as if it were another machine's; the threads of the nodes have the right one."""
    right, here = time.time, threading.current_thread()

    def wrong() -> float:
        return right() + (120.0 if threading.current_thread() is here else 0.0)

    monkeypatch.setattr(time, "time", wrong)
    monkeypatch.setattr(
        "flwr.supernode.node_auth_http_interceptor.now", lambda: dt.datetime.fromtimestamp(wrong(), dt.UTC)
    )
    reason = refusal(link.endpoint.fleet, link.endpoint.ca, link.keys["a"], tmp_path / "memory")
    assert "has a clock that differs by 1" in reason


def test_the_control_listener_wants_its_token(link: Link):
    endpoint = link.endpoint
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


def test_nobody_acts_as_the_server_without_the_secret(link: Link):
    endpoint = link.endpoint
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


def test_the_fleet_listener_is_only_for_nodes(link: Link):
    endpoint = link.endpoint
    token = bearer(endpoint.token)
    for path in ("v1/control/list-runs", "v1/runtime/acquire-task", "v1/runtime/get-nodes", "docs", "openapi.json"):
        assert post(endpoint.fleet, path, endpoint, token).status_code == 404
    for call in ("pull-messages", "activate-node", "register-node", "push-object"):
        assert post(endpoint.fleet, f"v1/fleet/{call}", endpoint, token).status_code == 401


def test_a_node_cannot_act_for_another(link: Link):
    with (
        signing(link.endpoint, link.keys["a"]) as client,
        pytest.raises(httpx.HTTPStatusError) as caught,
    ):
        client.PullMessages(PullMessagesRequest(node=Node(node_id=link.nodes["b"])))
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


def test_a_body_that_is_too_long_is_refused_before_it_is_read(link: Link):
    endpoint = link.endpoint
    assert b" 413 " in heads(endpoint, f"Content-Length: {LARGE}")
    assert b" 411 " in heads(endpoint, "Transfer-Encoding: chunked")
    assert b" 411 " in heads(endpoint)
    assert b" 401 " in heads(endpoint, "Content-Length: 7")
    key = link.keys["a"]
    with signing(endpoint, key) as client:
        request = PushObjectRequest(node=Node(node_id=link.nodes["a"]), object_content=bytes(LARGE))
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
