"""Checks certificates from files: whether they can be used, and for how long."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fftmoe.deploy.address import Host
from fftmoe.deploy.files import COPY_AGAIN, damaged
from fftmoe.errors import InputError
from fftmoe.shown import count_of

# What cryptography raises for a certificate that can be parsed but has wrong or missing values.
UNUSABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
WARN_DAYS = 30
NEW_DEPLOYMENT = "make a new deployment with `fftmoe deploy init` and give each site its new folder"


def days_left(certificate: bytes, now: datetime | None = None) -> int:
    """Return the whole days until a PEM certificate expires; negative once it has."""
    end = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return (end - (now or datetime.now(UTC))) // timedelta(days=1)


def expiry_warning(certificate: bytes, whose: str, now: datetime | None = None) -> str | None:
    """Return a warning if a PEM certificate expires in less than `WARN_DAYS` days, otherwise None."""
    if days_left(certificate, now) >= WARN_DAYS:
        return None
    end = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
    return f"{whose} expires on {end:%Y-%m-%d}, and no round can start after that; {NEW_DEPLOYMENT}"


def load_authority(path: Path, data: bytes) -> x509.Certificate:
    """Return the certificate of the certificate authority.

    Raises:
        InputError: the file holds something else, or the certificate is not valid today.
    """
    certificate = load_certificate(path, data)
    try:
        certificate.verify_directly_issued_by(certificate)  # it signs itself
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except UNUSABLE:
        is_authority = False
    if not is_authority:
        raise damaged(path, "it is not the certificate of an authority")
    return certificate


def load_certificate(path: Path, data: bytes) -> x509.Certificate:
    """Return the one certificate of a PEM file.

    Raises:
        InputError: the file holds no certificate or several, or the certificate is not valid today.
    """
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except UNUSABLE as error:
        raise damaged(path, "it holds no certificate") from error
    if len(certificates) != 1:  # each further certificate would be one more authority to trust
        raise damaged(path, f"it holds {count_of(len(certificates), 'certificate')}")
    _check_dates(path, certificates[0], datetime.now(UTC))
    return certificates[0]


def check_server_certificate(
    path: Path, certificate: x509.Certificate, authority: x509.Certificate, host: Host
) -> None:
    """Check that sites, which trust the authority only, will accept this certificate from `host`.

    Raises:
        InputError: another authority signed it, it is for other hosts, or a server may not use it.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except UNUSABLE as error:
        raise damaged(path, f"the authority in {path.with_name('ca.crt')} did not sign it") from error
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        covered = [*names.get_values_for_type(x509.DNSName), *names.get_values_for_type(x509.IPAddress)]
    except UNUSABLE:
        covered = []
    if host not in covered:
        raise InputError(
            f"{path} is a certificate for {', '.join(map(str, covered)) or 'no host'} and not for {host}, "
            f"the host of the address; {COPY_AGAIN}, or for another address {NEW_DEPLOYMENT}"
        )
    subject = x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)
    try:
        PolicyBuilder().store(Store([authority])).build_server_verifier(subject).verify(certificate, [])
    except VerificationError as error:
        raise damaged(path, f"a site would refuse it ({error})") from error


def check_server_key(path: Path, data: bytes, certificate: x509.Certificate) -> None:
    """Check that this is the private key of the certificate.

    Raises:
        InputError: it is another key, is not a key, or needs a passphrase.
    """
    try:
        same = load_pem_private_key(data, password=None).public_key() == certificate.public_key()
    except UNUSABLE as error:
        raise damaged(path, "it holds no private key without a passphrase") from error
    if not same:
        raise damaged(path, "it is not the key of the certificate in the same folder")


def _check_dates(path: Path, certificate: x509.Certificate, now: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    dates = f"it is valid from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M} UTC"
    if now < start:
        raise InputError(f"the certificate {path} is not valid yet: {dates}; set this machine's clock")
    if now > end:
        raise InputError(f"the certificate {path} has expired: {dates}; if the clock is right, {NEW_DEPLOYMENT}")
