"""A server that sends a byte now and then cannot keep a site that is asked to stop."""

import ssl
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.clientapp import ClientApp
from flwr.proto.fleet_pb2 import ActivateNodeResponse

from fftmoe.deploy.link import node as flower_node
from fftmoe.deploy.link.background import OneAtATime

SECONDS = 0.3  # in place of the limits of a last call and of a heartbeat
MOST_SECONDS = 10.0  # for an end that takes under one, on a busy machine


class Trickle(httpx.SyncByteStream):
    """One byte, and another one, until the test is over."""

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def __iter__(self) -> Iterator[bytes]:
        while not self._over.wait(0.02):
            yield b"x"


@pytest.mark.parametrize("slow", ["activate-node", "pull-messages", "deactivate-node", "send-node-heartbeat"])
def test_a_site_stops_while_its_server_trickles(slow: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked, over = threading.Event(), threading.Event()

    def answer(request: httpx.Request) -> httpx.Response:
        called = request.url.path.rpartition("/")[2]
        if called == slow:
            asked.set()
            return httpx.Response(200, stream=Trickle(over))
        content = ActivateNodeResponse(node_id=5).SerializeToString() if called == "activate-node" else b""
        return httpx.Response(200, content=content)

    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(answer)))
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda self, *places, cadata="": None)
    monkeypatch.setattr(flower_node, "LEAVE_SECONDS", SECONDS)
    monkeypatch.setattr(flower_node, "HEARTBEAT_CALL_TIMEOUT", SECONDS)
    memory, key = tmp_path / "node.json", ec.generate_private_key(ec.SECP384R1())
    ends = time.monotonic() + SECONDS
    stopping = (lambda: time.monotonic() > ends) if slow == "deactivate-node" else asked.is_set
    arguments = ("server:1", b"", key, ClientApp(), {})
    node = threading.Thread(
        target=lambda: flower_node.serve_node(*arguments, memory=memory, stop=stopping, say=lambda line: None),
        daemon=True,
    )
    node.start()
    try:
        assert asked.wait(MOST_SECONDS)
        node.join(MOST_SECONDS)
        assert not node.is_alive()
    finally:
        over.set()
    assert memory.exists() == (slow == "deactivate-node")  # the server may still count this node as connected


def test_a_call_that_is_not_over_is_not_made_again():
    over, calls = threading.Event(), list[int]()

    def slow() -> bool:
        calls.append(len(calls))
        return over.wait(MOST_SECONDS)

    call = OneAtATime(slow, 0.01)
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
            call()
    assert calls == [0]
    over.set()
    assert OneAtATime(slow, MOST_SECONDS)() is True
    with pytest.raises(ZeroDivisionError):
        OneAtATime(lambda: 1 // 0, MOST_SECONDS)()
