"""Holds a site's connection to its server: it waits while the server is away,
and ends if the server is the wrong one.
"""

import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient

from fftmoe.deploy.link.background import ended_within, in_background
from fftmoe.engines.causes import root_cause
from fftmoe.errors import RunError

MAX_WAIT_SECONDS = 30.0  # between two tries to reach the server
STOP_POLL_SECONDS = 0.1  # between two calls of `stop` while waiting
AWAY = {502, 503, 504}  # the server, or a proxy before it, is not available now
KEY_IN_USE = 412
KEY_SECONDS = 90.0  # after which it is not a crashed node that the server still counts as connected
KEY_TWICE = (
    "another process is connected with this site's key, perhaps from a copy of this folder on another machine; "
    "end one of the two: each site needs a key of its own"
)
# OpenSSL's reasons for a peer that does not speak TLS.
PLAIN_TEXT = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"}
Request = TypeVar("Request")
Response = TypeVar("Response")


class Stopped(Exception):
    """Reports that the node was asked to stop."""


@dataclass
class ServerLine:
    """Holds the connection to the server.

    Attributes:
        stop: whether to stop. say: shows a line to a person.
        poll_seconds: the shortest time between two requests for messages.
        welcome: whether the server has ever accepted this node.
        failures: number of consecutive failures so far.
    """

    client: FleetHttpClient
    address: str
    stop: Callable[[], bool]
    say: Callable[[str], None]
    poll_seconds: float
    welcome: bool = False
    failures: int = 0

    def call(self, send: Callable[[Request], Response], request: Request) -> Response:
        """Return the server's answer; wait as long as the server is away, or answers slowly.

        Raises:
            HTTPStatusError: the server refuses the request. RunError: it is the wrong server. Stopped: see there.
        """
        while True:
            try:
                response = self._answer(in_background(partial(send, request)))
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in AWAY:
                    raise
                self.wait("it is not ready")
            except httpx.TransportError as error:
                cause = root_cause(error)
                if not self.welcome and (reason := _distrust(cause)):
                    raise RunError(f"the server at {self.address} {reason}") from error
                self.wait(str(cause) or type(cause).__name__)
            except ValueError:
                self.wait("its answer cannot be read")
            else:
                if self.welcome and self.failures > 1:
                    self.say(f"the server at {self.address} is back")
                self.failures = 0
                return response

    def _answer(self, call: Future[Response]) -> Response:
        """Return what a call returns or raises, unless the node is asked to stop before."""
        while not ended_within(call, STOP_POLL_SECONDS):
            if self.stop():
                raise Stopped
        return call.result()

    def join(self, public_key: bytes, memory: Path) -> Node:
        """Connect as a node.

        Args:
            memory: a file with the number of this node while it is connected.

        Raises:
            RunError: the server has never accepted this node, and refuses it. Stopped: see there.
        """
        # The server counts a crashed node as connected for another minute, and refuses its key meanwhile. Only the
        # place that was connected may end that connection: a copy of its folder must not drive it out.
        with suppress(OSError, ValueError, httpx.HTTPStatusError):
            number, place = memory.read_text().split(maxsplit=1)
            if place == memory_place(memory):
                self.call(self.client.DeactivateNode, DeactivateNodeRequest(node_id=int(number)))
        began = time.monotonic()
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        while True:
            try:
                node_id = self.call(self.client.ActivateNode, request).node_id
                break
            except httpx.HTTPStatusError as error:
                reason = _refusal(error.response)
                if not self.welcome and error.response.status_code != KEY_IN_USE:
                    raise RunError(f"the server at {self.address} {reason}") from error
                if error.response.status_code == KEY_IN_USE and began is not None and _is_long(began):
                    self.say(KEY_TWICE)
                    began = None  # once
            self.wait(f"it {reason}")
        with suppress(OSError):  # without the file, only the next start after a crash takes a minute longer
            memory.write_text(f"{node_id} {memory_place(memory)}")
        if not self.welcome:
            self.say(f"connected to the server at {self.address}")
            self.welcome = True
        return Node(node_id=node_id)

    def wait(self, reason: str) -> None:
        """Wait after a failure, longer after each one; a failure that the next try ends is not reported."""
        self.failures += 1
        if not self.welcome and self.failures == 1:
            self.say(f"waiting for the server at {self.address} ({reason})")
        if self.welcome and self.failures == 2:
            self.say(f"lost the server at {self.address} ({reason}); trying until it is back")
        self.pause(min(2.0 ** min(self.failures - 1, 10), MAX_WAIT_SECONDS))

    def pause(self, seconds: float) -> None:
        """Sleep, unless the node is asked to stop.

        Raises:
            Stopped: it is.
        """
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if self.stop():
                raise Stopped
            time.sleep(min(left, STOP_POLL_SECONDS))


def memory_place(memory: Path) -> str:
    """Return the machine and the folder of a node."""
    return f"{socket.gethostname()} {memory.absolute()}"


def _is_long(began: float) -> bool:
    return time.monotonic() - began > KEY_SECONDS


def _distrust(cause: BaseException) -> str | None:
    """Return why this cannot be the right server; None if it may be."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"has a certificate that this site does not trust ({cause.verify_message}); check the address, ca.crt and "
            "this machine's date"
        )
    if isinstance(cause, ssl.SSLError) and cause.reason in PLAIN_TEXT:
        return "does not speak TLS; check the address and the port"
    return None


def _refusal(response: httpx.Response) -> str:
    """Return why the server does not accept this node."""
    if response.status_code == KEY_IN_USE:
        return "still has an earlier connection with this site's key, which ends within a minute"
    if response.status_code != httpx.codes.UNAUTHORIZED:
        return f"answers with HTTP {response.status_code}; a server of fftmoe does not, so check the address and port"
    with suppress(KeyError, ValueError):
        ahead = time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
        # The server counts whole seconds, and accepts an old signature for longer than one from the future.
        if not -TIMESTAMP_TOLERANCE < ahead < SYSTEM_TIME_TOLERANCE - 1:
            return f"has a clock that differs by {abs(ahead):.0f} s from this machine's; set both by NTP"
    return "does not know this site's key; start this site with the folder that the server's operator made for it"
