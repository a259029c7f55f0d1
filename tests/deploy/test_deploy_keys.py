"""Certificates and keys that a server or a site refuses when it reads its folder."""

import shutil
import ssl
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from deployments import ADDRESS, NOW, READERS, SITES, certify, edit, handshake
from fftmoe.deploy.folder import create_deployment, read_server, read_site
from fftmoe.deploy.keys import Certified, make_server_certificate, make_site_key
from fftmoe.errors import InputError


@pytest.mark.parametrize("part", READERS)
@pytest.mark.parametrize(
    ("year", "words"),
    [
        (
            2024,
            "expired: it is valid from 2024-02-28 11:55 to 2024-02-29 12:00 UTC, and it is 20.*; if the clock is right",
        ),
        (
            2124,
            "not valid yet: it is valid from 2124-02-28 11:55 to 2124-02-29 12:00 UTC, and .* set this machine's clock",
        ),
    ],
)
def test_a_certificate_that_is_not_valid_today_is_refused_with_its_dates(
    folders: dict[str, Path], part: str, year: int, words: str
):
    authority = certify(folders["server"], days=1, start=datetime(year, 2, 28, 12, tzinfo=UTC))
    (folders["site"] / "ca.crt").write_bytes(authority.certificate)
    with pytest.raises(InputError, match=words):
        READERS[part](folders[part])


def test_an_expired_certificate_of_only_the_server_is_refused(made: Path, server: Path):
    authority = Certified(*((made / "ca" / name).read_bytes() for name in ("ca.crt", "ca.key")))
    old = make_server_certificate(authority, "fl.example.org", 1, NOW - timedelta(days=2))
    (server / "server.crt").write_bytes(old.certificate)
    with pytest.raises(InputError, match=r"the certificate .*server.crt has expired"):
        read_server(server)


def test_the_operator_can_sign_for_another_address_with_the_same_authority(made: Path, server: Path):
    authority = Certified(*((made / "ca" / name).read_bytes() for name in ("ca.crt", "ca.key")))
    other = make_server_certificate(authority, IPv4Address("10.1.2.3"), 1, NOW)
    (server / "server.crt").write_bytes(other.certificate)
    (server / "server.key").write_bytes(other.key)
    with pytest.raises(InputError, match=r"for localhost, 10.1.2.3, 127.0.0.1 and not for fl.example.org, the host"):
        read_server(server)
    edit(server / "deployment.json", address="10.1.2.3:9092")
    assert read_server(server).deployment.address == "10.1.2.3:9092"
    handshake(server, made / "sites" / "3" / "ca.crt", "10.1.2.3")


def test_a_certificate_for_another_host_is_refused(server: Path):
    edit(server / "deployment.json", address="[2001:db8::7]:9092")
    with pytest.raises(
        InputError, match=r"and not for 2001:db8::7, the host of the address; copy it again .*make a new"
    ):
        read_server(server)


def test_files_of_another_deployment_are_refused(server: Path, tmp_path: Path):
    create_deployment(tmp_path / "other", ADDRESS, SITES, days=1)
    for name, words in (
        ("ca.crt", r"server.crt is damaged .*: the authority in .*ca.crt did not sign it; copy it again"),
        (
            "server.key",
            r"server.key is damaged .*: it is not the key of the certificate in the same folder; copy it again",
        ),
    ):
        mine = (server / name).read_bytes()
        shutil.copy(tmp_path / "other" / "server" / name, server / name)
        with pytest.raises(InputError, match=words):
            read_server(server)
        (server / name).write_bytes(mine)
    read_server(server)


@pytest.mark.parametrize("part", READERS)
def test_a_certificate_that_is_no_authority_is_not_trusted(folders: dict[str, Path], part: str):
    (folders[part] / "ca.crt").write_bytes((folders["server"] / "server.crt").read_bytes())
    with pytest.raises(InputError, match=r"ca.crt is damaged .*: it is not the certificate of an authority"):
        READERS[part](folders[part])


def test_an_authority_is_no_server(server: Path):
    authority = certify(server)
    (server / "server.crt").write_bytes(authority.certificate)
    (server / "server.key").write_bytes(authority.key)
    with pytest.raises(InputError, match=r"server.crt is a certificate for no host and not for fl.example.org"):
        read_server(server)


def test_a_certificate_that_the_sites_would_refuse_is_refused(server: Path, monkeypatch: pytest.MonkeyPatch):
    """As one that may not be used by a server."""
    client_only = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
    monkeypatch.setattr(x509, "ExtendedKeyUsage", lambda _: client_only)
    certify(server)
    with pytest.raises(InputError, match=r"server.crt is damaged .*: a site would refuse it .*EKU"):
        read_server(server)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ("06072a8648ce3d0201", "06072a8648ce3d027f"),  # the kind of the public key, looked at when asked for
        ("a003020102", "a003020107"),  # the certificate's version
    ],
)
def test_a_certificate_with_unknown_content_is_refused(server: Path, name: str, found: str, instead: str):
    """Each of these makes cryptography raise another kind of error."""
    certificate = ssl.PEM_cert_to_DER_cert((server / name).read_text())
    assert bytes.fromhex(found) in certificate
    damaged = certificate.replace(bytes.fromhex(found), bytes.fromhex(instead))
    (server / name).write_text(ssl.DER_cert_to_PEM_cert(damaged))
    with pytest.raises(InputError, match=f"{name} is damaged .*; copy it again"):
        read_server(server)


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
def test_a_certificate_file_holds_one_certificate(server: Path, name: str):
    """What is appended to ca.crt would be trusted as well."""
    whole = (server / name).read_bytes()
    for content, words in ((whole * 2, "it holds 2 certificates"), (whole[:-60], "it holds no certificate")):
        (server / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is damaged .*: {words}; copy it again"):
            read_server(server)


def test_a_server_key_with_a_passphrase_or_none_at_all_is_refused(server: Path):
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    for content in (locked, b"", b"x"):
        (server / "server.key").write_bytes(content)
        with pytest.raises(InputError, match=r"server.key is damaged .*: it holds no private key without a passphrase"):
            read_server(server)


def test_a_site_key_of_another_kind_is_refused(site: Path):
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        (site / "node.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        with pytest.raises(InputError, match=r"node.key is damaged .*: it is not an ECDSA P-384 key; copy it again"):
            read_site(site)
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (pem, b"", b"x"):
        (site / "node.key").write_bytes(content)
        with pytest.raises(InputError, match=r"node.key is damaged .*: it holds no OpenSSH private key without a pass"):
            read_site(site)


def test_a_site_key_whose_halves_do_not_belong_together_is_refused(site: Path):
    """The server would refuse it as a key that it does not know."""
    begin, *lines, end = (site / "node.key").read_bytes().splitlines()
    raw = bytearray(b64decode(b"".join(lines)))
    raw[-20] ^= 1  # in the private half, which comes last
    (site / "node.key").write_bytes(b"\n".join([begin, b64encode(raw), end]))
    with pytest.raises(InputError, match=r"node.key is damaged .*: its private half does not belong to its public"):
        read_site(site)


def test_a_public_key_of_another_kind_is_refused(server: Path):
    path = server / "sites" / "3.pub"
    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        path.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        with pytest.raises(InputError, match=r"3.pub is damaged .*: it is not an ECDSA P-384 key; copy it again"):
            read_server(server)
    kind, blob = make_site_key().public.split()
    raw = bytearray(b64decode(blob))
    raw[-97] = 3  # the first byte of the point, which would be a compressed one
    compressed = kind + b" " + b64encode(raw)
    for content in (b"", b"ecdsa-sha2-nistp384 AAAA", make_site_key().private, compressed):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"3.pub is damaged .*: it holds no OpenSSH public key; copy it again"):
            read_server(server)


def test_two_sites_with_one_key_are_refused(server: Path):
    same = (server / "sites" / "3.pub").read_text().strip() + " with a comment\n"  # the key counts, not the text
    (server / "sites" / "hospital-b.pub").write_text(same)
    with pytest.raises(InputError, match=r"the sites hospital-b and 3 have the same key, so the server could not"):
        read_server(server)


def test_a_key_of_no_site_is_refused_and_other_files_are_ignored(server: Path):
    (server / "sites" / "._3.pub").write_bytes(b"what a file manager leaves")
    (server / "sites" / "notes.txt").write_bytes(b"mine")
    read_server(server)
    (server / "sites" / "intruder.pub").write_bytes(make_site_key().public)
    with pytest.raises(
        InputError, match=r"has keys of intruder, which deployment.json does not name; remove them, or make a new"
    ):
        read_server(server)
