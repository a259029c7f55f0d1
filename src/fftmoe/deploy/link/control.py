"""The SuperLink's control port, as whoever holds its token uses it."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
)
from flwr.supercore.protobuf.client import (
    ProtobufCall,
    ProtobufClient,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
)
from flwr.supercore.retry import RetryInvoker, exponential

from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.engines.causes import root_cause
from fftmoe.errors import RunError

CALL_SECONDS = 60.0  # for the SuperLink, which is on this machine, to answer
RETRY_SECONDS = 10.0  # for it to be reachable again
Client = TypeVar("Client", bound=ProtobufClient)


def list_sites(endpoint: Endpoint) -> dict[str, str]:
    """Each registered site's name and status: `online`, `offline`, or `registered` if it never came.

    Raises:
        RunError: the SuperLink does not answer.
    """
    with explained(endpoint), connect(ControlHttpClient, endpoint) as control:
        return {node.name: node.status for node in control.ListNodes(ListNodesRequest()).nodes_info}


def connect(
    kind: type[Client],
    endpoint: Endpoint,
    *interceptors: ProtobufClientInterceptor,
    retries: RetryInvoker | None = None,
) -> Client:
    """A client of the SuperLink's control port, on this machine, that shows the token; to be closed."""
    trust = ssl.create_default_context(cafile=endpoint.ca)
    who = [RuntimeVersionHttpInterceptor("fftmoe"), _Bearer(endpoint.token), *interceptors]
    client = kind(f"https://{endpoint.control}", interceptors=who, verify=trust, retry_invoker=retries)
    client.close()
    # A client of our own, as Flower's goes through the proxy that the environment names, even to this machine.
    client._client = httpx.Client(verify=trust, timeout=CALL_SECONDS, trust_env=False)
    return client


@dataclass(frozen=True)
class _Bearer:
    token: str = field(repr=False)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Show the token."""
        context.request.headers["authorization"] = f"Bearer {self.token}"
        return call_next(context)


def retries() -> RetryInvoker:
    """Calls are tried again while the SuperLink may only be slow to come, and not where it is not to be trusted."""
    return RetryInvoker(
        exponential,
        httpx.TransportError,
        max_tries=None,
        max_time=RETRY_SECONDS,
        should_giveup=lambda error: isinstance(root_cause(error), ssl.SSLError),
    )


@contextmanager
def explained(endpoint: Endpoint) -> Iterator[None]:
    """What goes wrong with the SuperLink, as a sentence."""
    try:
        yield
    except (httpx.HTTPError, ObjectPushError) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
            reason = "it does not know this run; it was started again, or heard nothing from this process for a minute"
        elif isinstance(root_cause(error), ssl.SSLCertVerificationError):
            reason = f"its certificate {endpoint.certificate} does not hold for {endpoint.control}: {root_cause(error)}"
        elif isinstance(error, httpx.ConnectError):
            reason = "it is not there any more; its log may say why"
        raise RunError(f"the SuperLink at {endpoint.control} failed: {reason}") from error
