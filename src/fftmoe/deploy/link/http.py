"""Makes Flower's HTTP clients with a line of our own: which proxy is used is decided here, and said.

Flower's client takes a proxy from the environment even for this machine, and cannot be made where the environment names
a kind of proxy that it does not know. A site that cannot pass its own proxy would blame the server.
"""

import ipaddress
import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # pyright: ignore[reportAttributeAccessIssue]

import httpx
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker

from fftmoe.errors import InputError

Client = TypeVar("Client", bound=ProtobufClient)


class Proxy(NamedTuple):
    """Describes a proxy that the environment names.

    Attributes:
        variable: its name there. url: where it is, perhaps with a password.
    """

    variable: str
    url: str

    def __str__(self) -> str:
        """Return the proxy for a message, without a password."""
        place = self.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        return f"the proxy {place} that {self.variable} names"


def proxy_for(address: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy to a server; None for one on this machine, one that NO_PROXY lists, and where none is set.

    As everywhere, the variable in small letters counts before that in capitals, and ALL_PROXY after HTTPS_PROXY.

    Args:
        address: host:port of a server that speaks TLS.
    """
    host = urlsplit(f"//{address}").hostname or ""
    without = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    if _is_this_machine(host) or proxy_bypass_environment(host, {"no": without}):
        return None
    for kind in ("https_proxy", "all_proxy"):
        variable = kind if kind in environment else kind.upper()
        if url := environment.get(variable, "").strip():
            return Proxy(variable, url if "://" in url else f"http://{url}")
    return None


def _is_this_machine(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return found.is_loopback or found.is_unspecified


def new_client(
    kind: type[Client],
    address: str,
    interceptors: Sequence[ProtobufClientInterceptor],
    trust: ssl.SSLContext,
    seconds: float,
    *,
    proxy: Proxy | None = None,
    retries: RetryInvoker | None = None,
) -> Client:
    """Return a client of Flower's for a server that speaks TLS; nothing of the environment decides how it connects.

    Args:
        address: host:port. seconds: without any byte, after which a call fails.

    Raises:
        InputError: the proxy is of a kind that cannot be used.
    """
    client = object.__new__(kind)  # its `__init__` would make an httpx.Client with proxies of the environment
    parts: dict[str, Any] = {
        "_base_url": f"https://{address}",
        "_interceptors": tuple(interceptors),
        "_retry_invoker": retries,
        "_client": _line(address, trust, seconds, proxy),
    }
    vars(client).update(parts)
    return client


def _line(address: str, trust: ssl.SSLContext, seconds: float, proxy: Proxy | None) -> httpx.Client:
    try:
        url = None if proxy is None else proxy.url
        if url is not None and not urlsplit(url).hostname:
            raise ValueError("it names no host")
        return httpx.Client(verify=trust, timeout=seconds, trust_env=False, follow_redirects=False, proxy=url)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise InputError(
            f"{proxy} cannot be used: a proxy must be http:// or https:// (socks5:// needs the package socksio); "
            f"correct it, or set NO_PROXY={urlsplit(f'//{address}').hostname} to connect without one"
        ) from error
