"""Which proxy a site and a server go through, and what is said of it."""

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.clientapp import ClientApp
from flwr.supercore.control import ControlHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from hypothesis import given, settings
from hypothesis import strategies as st

from fftmoe.deploy.link import line as flower_line
from fftmoe.deploy.link.http import Proxy, new_client, proxy_for
from fftmoe.deploy.link.node import serve_node
from fftmoe.errors import InputError

NAMES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
URLS = ("http://proxy.lan:3128", "proxy.lan:3128", "https://me:secret@proxy.lan", "socks5://proxy.lan", "http://[")
HERE = ("localhost:1", "127.0.0.1:9091", "127.8.8.8:1", "[::1]:9091", "0.0.0.0:1", "LOCALHOST:1")
environments = st.dictionaries(st.sampled_from((*NAMES, "no_proxy", "NO_PROXY")), st.sampled_from(("", *URLS, "*")))


@settings(max_examples=40)
@given(environments, st.sampled_from(HERE))
def test_no_proxy_leads_to_this_machine(environment: dict[str, str], address: str):
    assert proxy_for(address, environment) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://a:1"}, None),  # servers speak TLS
        ({"HTTPS_PROXY": "http://a:1"}, Proxy("HTTPS_PROXY", "http://a:1")),
        ({"HTTPS_PROXY": "a:1"}, Proxy("HTTPS_PROXY", "http://a:1")),
        ({"https_proxy": "http://b:1", "HTTPS_PROXY": "http://a:1"}, Proxy("https_proxy", "http://b:1")),
        ({"ALL_PROXY": "http://c:1"}, Proxy("ALL_PROXY", "http://c:1")),
        ({"HTTPS_PROXY": "http://a:1", "all_proxy": "http://c:1"}, Proxy("HTTPS_PROXY", "http://a:1")),
        ({"HTTPS_PROXY": " ", "ALL_PROXY": "http://c:1"}, Proxy("ALL_PROXY", "http://c:1")),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "server.example"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": ".example"}, None),
        ({"HTTPS_PROXY": "http://a:1", "no_proxy": "*"}, None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "other.example"}, Proxy("HTTPS_PROXY", "http://a:1")),
    ],
)
def test_the_proxy_is_that_of_the_environment(environment: dict[str, str], expected: Proxy | None):
    assert proxy_for("server.example:9092", environment) == expected


def test_a_password_is_not_shown():
    assert str(Proxy("HTTPS_PROXY", "http://me:secret@proxy.lan:3128")) == (
        "the proxy proxy.lan:3128 that HTTPS_PROXY names"
    )


@pytest.mark.parametrize("kind", [ControlHttpClient, FleetHttpClient])
def test_a_client_is_flowers_own_but_for_its_line(monkeypatch: pytest.MonkeyPatch, kind: Any):
    with kind("https://server:1") as theirs:
        expected = vars(theirs)
    for name, url in (
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ("ALL_PROXY", "socks5://x:1"),
        ("all_proxy", "nonsense://x"),
    ):
        monkeypatch.setenv(name, url)
        with new_client(kind, "127.0.0.1:9", [], ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), 1.0) as ours:
            assert vars(ours).keys() == expected.keys()
            assert ours._client._mounts == {}


@pytest.mark.parametrize(
    "url", ["ftp://me:secret@x", "nonsense://x", "http://[", "http://me:secret@", "socks5://proxy.lan"]
)
def test_a_proxy_of_another_kind_is_refused(url: str):
    with pytest.raises(InputError, match=r"that HTTPS_PROXY names cannot be used.* set NO_PROXY=server ") as caught:
        new_client(
            FleetHttpClient,
            "server:9",
            [],
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            1.0,
            proxy=Proxy("HTTPS_PROXY", url),
        )
    assert "secret" not in str(caught.value)


class Refusing(BaseHTTPRequestHandler):
    """A proxy that lets nobody through."""

    def do_CONNECT(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def refusing_proxy() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _said(address: str, patch: pytest.MonkeyPatch, folder: Path) -> list[str]:
    """What a site says until it would wait for the third time."""
    said: list[str] = []
    waits: list[float] = []

    def pause(self: Any, seconds: float) -> None:
        waits.append(seconds)
        if len(waits) > 2:
            raise flower_line.Stopped

    patch.setattr(flower_line.ServerLine, "pause", pause)
    patch.setattr(ssl.SSLContext, "load_verify_locations", lambda self, *places, cadata="": None)
    key = ec.generate_private_key(ec.SECP384R1())
    serve_node(address, b"", key, ClientApp(), {}, memory=folder / "memory", stop=lambda: False, say=said.append)
    return said


def test_a_site_says_which_proxy_does_not_let_it_through(
    refusing_proxy: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{refusing_proxy.server_port}")
    said = _said("server.example:9092", monkeypatch, tmp_path)
    assert refusing_proxy.asked == ["server.example:9092"] * 3  # type: ignore[attr-defined]
    assert said == [
        f"waiting for the server at server.example:9092 (through the proxy 127.0.0.1:{refusing_proxy.server_port} that "
        "HTTPS_PROXY names) (403 Forbidden)"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_site_reaches_a_server_on_this_machine_without_the_proxy(
    refusing_proxy: HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    monkeypatch.setenv(name, f"http://127.0.0.1:{refusing_proxy.server_port}")
    said = _said("127.0.0.1:1", monkeypatch, tmp_path)
    assert refusing_proxy.asked == []  # type: ignore[attr-defined]
    assert said == ["waiting for the server at 127.0.0.1:1 ([Errno 111] Connection refused)"]
    assert httpx.Client().trust_env  # of other uses, the environment still decides
