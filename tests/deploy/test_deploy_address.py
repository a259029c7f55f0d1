"""The server's address: valid ones, invalid ones, and those that stay on this machine."""

import re
from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from fftmoe.deploy.address import Address, is_loopback, parse_address
from fftmoe.errors import InputError

label = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
dns_names = st.lists(label, min_size=1, max_size=3).map(".".join)
ips = st.ip_addresses().filter(lambda ip: not ip.is_unspecified and not ip.is_multicast)
ports = st.integers(1, 65535)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://fl.example.org:9092", "has a scheme"),
        ("fl.example.org", "has no port"),
        ("[::1]", "has no port"),
        ("", "has no port"),
        (":9092", "has no host"),
        ("fl.example.org:", "has the port ''"),
        ("fl.example.org:0", "has the port '0', which is not a number from 1 to 65535"),
        ("fl.example.org:65536", "has the port '65536'"),
        ("fl.example.org:-1", "has the port '-1'"),
        ("fl.example.org:９０９２", "has the port"),
        ("fl.example.org:9092/path", "has the port '9092/path'"),
        ("::1:9092", "an IPv6 address goes in brackets"),
        ("[::1:9092", "an IPv6 address goes in brackets"),
        ("[1.2.3.4]:9092", "has '1.2.3.4' in brackets, which is not an IPv6 address"),
        ("[]:9092", "which is not an IPv6 address"),
        ("[fe80::1%eth0]:9092", "has the zone 'eth0'"),
        ("0.0.0.0:9092", "stands for every address"),
        ("[::]:9092", "stands for every address"),
        ("224.0.0.1:9092", "is a multicast address"),
        ("1.2.3:9092", "has the host '1.2.3', which is not an IP address"),
        ("1.2.3.256:9092", "which is not an IP address"),
        ("fl_server:9092", "neither a DNS name nor an IP address"),
        ("-fl.org:9092", "neither a DNS name"),
        ("fl..org:9092", "neither a DNS name"),
        ("fl.org.:9092", "neither a DNS name"),
        ("*.org:9092", "neither a DNS name"),
        ("me@fl.org:9092", "neither a DNS name"),
        (" fl.org:9092", "neither a DNS name"),
        ("fl.org\n:9092", "neither a DNS name"),
        ("\u212alinik.org:9092", "neither a DNS name"),  # the sign for kelvin, whose lower case is a plain k
        (f"{'a' * 64}.org:9092", "neither a DNS name"),
        (f"{'a.' * 127}a:9092", "neither a DNS name"),
    ],
)
def test_an_address_that_no_site_could_call_is_refused(address: str, words: str):
    with pytest.raises(InputError) as caught:
        parse_address(address)
    assert f"the address {address!r} " in str(caught.value)
    assert words in str(caught.value)
    assert "write host:port, such as fl.example.org:9092" in str(caught.value)


@given(st.one_of(dns_names, ips), ports)
def test_a_good_address_is_read_as_it_was_meant(host: str | IPv4Address | IPv6Address, port: int):
    text = f"[{host}]:{port}" if isinstance(host, IPv6Address) else f"{host}:{port}"
    assert parse_address(text) == Address(host, port)
    assert parse_address(text.upper()) == Address(host, port)


@given(st.one_of(st.text(), st.from_regex(r"\[?[0-9a-zA-Z.:%_-]*\]?:[0-9]*", fullmatch=True)))
def test_any_text_is_an_address_or_is_refused_with_advice(text: str):
    try:
        address = parse_address(text)
    except InputError:
        with pytest.raises(InputError, match=re.escape(f"the address {text!r} ")):
            parse_address(text)
        return
    assert 1 <= address.port <= 65535
    assert text.lower().endswith(f":{address.port}")
    host = address.host
    # Whatever is accepted can go into a certificate.
    x509.SubjectAlternativeName([x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)])


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "127.255.255.254", "[::1]", "[0:0::1]"])
def test_this_machine_is_recognised(host: str):
    assert is_loopback(f"{host}:9092")


@pytest.mark.parametrize("host", ["localhost.example.org", "fl.example.org", "128.0.0.1", "10.0.0.1", "[::2]", "a127"])
def test_other_machines_are_recognised(host: str):
    assert not is_loopback(f"{host}:9092")


def test_whether_it_is_this_machine_is_not_answered_for_what_is_no_address():
    with pytest.raises(InputError, match="has no port"):
        is_loopback("127.0.0.1")
