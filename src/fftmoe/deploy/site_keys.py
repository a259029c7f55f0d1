"""Reads the sites' keys from files: a site reads its private key, the server reads all public keys."""

from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fftmoe.deploy.files import damaged, read_bytes
from fftmoe.errors import InputError

# What cryptography raises for a damaged key; TypeError for a passphrase, NotImplementedError for a compressed point.
KEY_ERRORS = (ValueError, TypeError, NotImplementedError, UnsupportedAlgorithm)


def read_site_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a site's private key.

    Raises:
        InputError: the file is missing or open to other users, is not an ECDSA P-384 key in OpenSSH format, or
            needs a passphrase.
    """
    data = read_bytes(path, private=True)
    try:
        key = load_ssh_private_key(data, password=None)
    except KEY_ERRORS as error:
        raise damaged(path, "it holds no OpenSSH private key without a passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise damaged(path, "it is not an ECDSA P-384 key")
    if not _holds_public_half(data, key.public_key()):
        raise damaged(path, "its private half does not belong to its public half")
    return key


def read_public_keys(folder: Path, sites: Sequence[str]) -> tuple[ec.EllipticCurvePublicKey, ...]:
    """Return the public keys of these sites from `server/sites`, in the same order.

    Raises:
        InputError: a key is missing or damaged, belongs to no site, or belongs to two.
    """
    foreign = {path.stem for path in folder.glob("[!.]*.pub")} - set(sites)
    if foreign:
        raise InputError(
            f"{folder} has keys of {', '.join(sorted(foreign))}, which deployment.json does not name; "
            "remove them, or make a new deployment with these sites"
        )
    owners: dict[tuple[int, int], str] = {}
    keys = []
    for name in sites:
        path = folder / f"{name}.pub"
        key = _load_public_key(path)
        numbers = key.public_numbers()
        other = owners.setdefault((numbers.x, numbers.y), name)
        if other != name:
            raise InputError(
                f"the sites {other} and {name} have the same key, so the server could not distinguish them; "
                "copy both again from the folder that `fftmoe deploy init` made"
            )
        keys.append(key)
    return tuple(keys)


def _load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    data = read_bytes(path)
    try:
        key = load_ssh_public_key(data)
    except KEY_ERRORS as error:
        raise damaged(path, "it holds no OpenSSH public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise damaged(path, "it is not an ECDSA P-384 key")
    return key


def _holds_public_half(data: bytes, public: ec.EllipticCurvePublicKey) -> bool:
    """Return whether the file's public key belongs to its private key, which cryptography does not check."""
    blob = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    try:
        return b64decode(blob) in b64decode(data.split(b"-----")[2])  # between BEGIN and END
    except ValueError:
        return False
