"""Makes a certificate authority, the server's certificate and the sites' keys, all as bytes."""

from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fftmoe.deploy.address import Host

CLOCK_SKEW = timedelta(minutes=5)  # a site whose clock is slow can join immediately


class Certified(NamedTuple):
    """Holds a certificate and its private key, both in PEM format."""

    certificate: bytes
    key: bytes


class SiteKey(NamedTuple):
    """Holds an ECDSA P-384 key pair in OpenSSH format; `public` is one line."""

    private: bytes
    public: bytes


def make_authority(days: int, now: datetime) -> Certified:
    """Return a new certificate authority, which can sign certificates of servers but not of other authorities."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _subject("fftmoe deployment CA")
    builder = (
        _builder(name, name, key.public_key(), days, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return _pem(builder.sign(key, hashes.SHA384()), key)


def make_server_certificate(authority: Certified, host: Host, days: int, now: datetime) -> Certified:
    """Return a certificate for `host` and for the server's own machine (localhost, 127.0.0.1), signed by the authority.

    Raises:
        ValueError: the authority's files are damaged or do not belong together.
    """
    ca = x509.load_pem_x509_certificate(authority.certificate)
    ca_key = load_pem_private_key(authority.key, password=None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca.public_key():
        raise ValueError("the authority's key is not the key of its certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_subject("fftmoe server"), ca.subject, key.public_key(), days, now)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    return _pem(builder.sign(ca_key, hashes.SHA384()), key)


def make_site_key() -> SiteKey:
    """Return a new key, with which a site proves its identity to the server."""
    key = ec.generate_private_key(ec.SECP384R1())
    return SiteKey(
        private=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        public=key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _alternative_names(host: Host) -> list[x509.GeneralName]:
    hosts = dict.fromkeys((host, "localhost", IPv4Address("127.0.0.1")))  # each once, `host` first
    return [x509.DNSName(h) if isinstance(h, str) else x509.IPAddress(h) for h in hosts]


def _usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(common_name: str) -> x509.Name:
    # Not the host: a common name has at most 64 characters, and clients read the alternative names only.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Certified:
    return Certified(
        certificate=certificate.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
