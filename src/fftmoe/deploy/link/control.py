"""Makes clients of the SuperLink's control port, which its token opens."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker, exponential

from fftmoe.deploy.link.http import Client, new_client
from fftmoe.deploy.link.superlink import Endpoint
from fftmoe.engines.causes import root_cause
from fftmoe.errors import RunError

ANSWER_SECONDS = 60.0  # for an answer of the SuperLink, which runs on this machine
RETRY_SECONDS = 10.0  # for a SuperLink that cannot be reached


def list_sites(endpoint: Endpoint) -> dict[str, str]:
    """Return the name and status of each registered site: `online`, `offline`, or `registered` if it never connected.

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
    """Return a client of the control port that sends the token; the caller closes it."""
    trust = ssl.create_default_context(cafile=endpoint.ca)
    chain = [RuntimeVersionHttpInterceptor("fftmoe"), _Bearer(endpoint.token), *interceptors]
    return new_client(kind, endpoint.control, chain, trust, ANSWER_SECONDS, retries=retries)


@dataclass(frozen=True)
class _Bearer:
    token: str = field(repr=False)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the token."""
        context.request.headers["authorization"] = f"Bearer {self.token}"
        return call_next(context)


def retries() -> RetryInvoker:
    """Repeat calls while the SuperLink cannot be reached, but not if its certificate is wrong."""
    return RetryInvoker(
        exponential,
        httpx.TransportError,
        max_tries=None,
        max_time=RETRY_SECONDS,
        should_giveup=lambda error: isinstance(root_cause(error), ssl.SSLError),
    )


@contextmanager
def explained(endpoint: Endpoint) -> Iterator[None]:
    """Turn errors of the SuperLink into a `RunError` that explains them."""
    try:
        yield
    except (httpx.HTTPError, ObjectPushError) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 401:
            reason = (
                "it does not know this run: it was restarted, or it got no heartbeat from this process for a minute"
            )
        elif isinstance(root_cause(error), ssl.SSLCertVerificationError):
            reason = f"its certificate {endpoint.certificate} is not valid for {endpoint.control}: {root_cause(error)}"
        elif isinstance(error, httpx.ConnectError):
            reason = "it does not run any more; its log may say why"
        raise RunError(f"the SuperLink at {endpoint.control} failed: {reason}") from error
