"""Reads the `host:port` at which the sites reach the server."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from fftmoe.errors import InputError

Host = str | IPv4Address | IPv6Address

HOST_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
PORT = re.compile(r"[1-9][0-9]{0,4}")
MAX_NAME = 253
ADVICE = "write host:port, such as fl.example.org:9092, 10.0.0.7:9092 or [2001:db8::7]:9092"


@dataclass(frozen=True)
class Address:
    """`host` is a lower-case DNS name or an IP address, without brackets."""

    host: Host
    port: int


def parse_address(text: str) -> Address:
    """Parse `host:port`, `1.2.3.4:port` or `[IPv6]:port`.

    Raises:
        InputError: the text has another form, or no site could reach this address.
    """
    if "://" in text:
        raise _wrong(text, "has a scheme")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise _wrong(text, "has no port")
    if not host:
        raise _wrong(text, "has no host")
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise _wrong(text, "has several colons (an IPv6 address goes in brackets)")
    if not PORT.fullmatch(port) or int(port) > 65535:
        raise _wrong(text, f"has the port {port!r}, which is not a number from 1 to 65535")
    return Address(_bracketed(text, host[1:-1]) if bracketed else _plain(text, host), int(port))


def is_loopback(address: str) -> bool:
    """Return whether `host:port` stays on this machine: localhost, 127.0.0.0/8 or ::1. Other names are not resolved.

    Raises:
        InputError: see `parse_address`.
    """
    host = parse_address(address).host
    return host == "localhost" if isinstance(host, str) else host.is_loopback


def _bracketed(text: str, host: str) -> IPv6Address:
    try:
        ip = IPv6Address(host)
    except ValueError as error:
        raise _wrong(text, f"has {host!r} in brackets, which is not an IPv6 address") from error
    if ip.scope_id is not None:
        # A zone names a network interface of one machine, and has no meaning on another machine or in a certificate.
        raise _wrong(text, f"has the zone {ip.scope_id!r}, which has a meaning on this machine only")
    _check_reachable(text, ip)
    return ip


def _plain(text: str, host: str) -> str | IPv4Address:
    labels = host.lower().split(".")
    if labels[-1].isdecimal():  # no top-level domain is a number, so this is meant as an IP address
        try:
            ip = IPv4Address(host)
        except ValueError as error:
            raise _wrong(text, f"has the host {host!r}, which is not an IP address") from error
        _check_reachable(text, ip)
        return ip
    if not host.isascii() or len(host) > MAX_NAME or not all(HOST_LABEL.fullmatch(label) for label in labels):
        raise _wrong(text, f"has the host {host!r}, which is neither a DNS name nor an IP address")
    return host.lower()


def _check_reachable(text: str, ip: IPv4Address | IPv6Address) -> None:
    if ip.is_unspecified:
        raise _wrong(
            text,
            "stands for every address of a machine, so no site can connect to it: name the one that the sites reach",
        )
    if ip.is_multicast:
        raise _wrong(text, "is a multicast address, at which no server answers")


def _wrong(text: str, why: str) -> InputError:
    return InputError(f"the address {text!r} {why}; {ADVICE}")
