"""The certificates of a deployment in a TLS handshake, and the warning before they expire."""

import re
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from deployments import NOW, handshake
from fftmoe.deploy.certificates import days_left, expiry_warning
from fftmoe.deploy.folder import MAX_DAYS, create_deployment, read_server, read_site
from fftmoe.deploy.keys import Certified, make_authority, make_server_certificate, make_site_key


@pytest.mark.parametrize("host", ["fl.example.org", "localhost", "127.0.0.1"])
def test_a_site_that_knows_the_authority_accepts_the_server(made: Path, host: str):
    handshake(made / "server", made / "sites" / "3" / "ca.crt", host)


@pytest.mark.parametrize("host", ["example.org", "fl.example.com", "a.fl.example.org", "127.0.0.2", "::1"])
def test_the_server_cannot_pose_as_another_host(made: Path, host: str):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        handshake(made / "server", made / "sites" / "3" / "ca.crt", host)


def test_another_authority_is_refused(made: Path, tmp_path: Path):
    (tmp_path / "ca.crt").write_bytes(make_authority(1, NOW).certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(made / "server", tmp_path / "ca.crt", "fl.example.org")


def test_a_server_cannot_sign_for_others(made: Path, tmp_path: Path):
    """With a stolen key of the server, nobody can make a certificate that a site accepts."""
    stolen = Certified(*((made / "server" / name).read_bytes() for name in ("server.crt", "server.key")))
    forged = make_server_certificate(stolen, "bank.example.org", 1, NOW)
    (tmp_path / "server.crt").write_bytes(forged.certificate + stolen.certificate)
    (tmp_path / "server.key").write_bytes(forged.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="invalid CA"):
        handshake(tmp_path, made / "ca" / "ca.crt", "bank.example.org")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.1.2.3:9092", "10.1.2.3"),
        ("[2001:db8::7]:9092", "2001:db8::7"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:65535", "::1"),
        ("localhost:9092", "localhost"),
        ("FL.Example.ORG:9092", "fl.example.org"),
        (f"{'a.' * 126}a:9092", f"{'a.' * 126}a"),  # far longer than a common name may be
    ],
)
def test_every_kind_of_host_is_accepted_by_its_name_and_read_back(tmp_path: Path, address: str, host: str):
    create_deployment(tmp_path / "x", address, ["a"], days=MAX_DAYS)
    handshake(tmp_path / "x" / "server", tmp_path / "x" / "sites" / "a" / "ca.crt", host)
    assert read_server(tmp_path / "x" / "server").deployment.address == address
    assert read_site(tmp_path / "x" / "sites" / "a").address == address


def test_an_authority_whose_parts_do_not_belong_together_signs_nothing():
    one, other = make_authority(1, NOW), make_authority(1, NOW)
    with pytest.raises(ValueError, match="not the key of its certificate"):
        make_server_certificate(Certified(one.certificate, other.key), "a", 1, NOW)


def test_a_site_key_is_one_line_of_openssh():
    key = make_site_key()
    assert re.fullmatch(rb"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+\n", key.public)
    assert key.private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert isinstance(load_ssh_public_key(key.public), ec.EllipticCurvePublicKey)


def test_days_left_are_whole_days():
    certificate = make_authority(10, NOW).certificate
    assert days_left(certificate, NOW) in (9, 10)  # a certificate's dates are whole seconds
    assert days_left(certificate, NOW + timedelta(days=8, hours=12)) == 1
    assert days_left(certificate, NOW + timedelta(days=9, hours=12)) == 0
    assert days_left(certificate, NOW + timedelta(days=10, hours=12)) == -1
    assert days_left(make_authority(10, datetime.now(UTC)).certificate) in (9, 10)


def test_a_warning_comes_in_the_last_month():
    certificate = make_authority(40, datetime(2024, 1, 1, tzinfo=UTC)).certificate  # to 10 February
    assert expiry_warning(certificate, "the certificate", datetime(2024, 1, 11, tzinfo=UTC)) is None
    for day in (12, 31):
        warning = expiry_warning(certificate, "the certificate", datetime(2024, 1, day, tzinfo=UTC))
        assert warning is not None
        assert warning.startswith(
            "the certificate expires on 2024-02-10, and no round can start after that; make a new"
        )
