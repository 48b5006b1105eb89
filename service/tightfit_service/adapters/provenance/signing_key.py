"""The deployment's Ed25519 key: read from a file that is given, or made on the first start.

Public keys of all keys that ever signed here are kept, so that results outlive a rotation.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tightfit_service.domain.errors import InvalidRequestError, UnavailableError

KEY_FILE = "signing-key.pem"
PUBLIC_FOLDER = "public"
_FIELD = "provenance_key_file"


def open_signing_key(folder: Path, *, key_file: Path | None = None) -> Ed25519PrivateKey:
    """Return the key that signs, and keep its public key in `folder`.

    Args:
        folder: Of the deployment; a key is made there (mode 0600) where no file is given.
        key_file: PEM file of an unencrypted Ed25519 private key (PKCS #8), such as a mounted secret.

    Raises:
        InvalidRequestError: The file holds no such key.
        UnavailableError: A file cannot be read or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = key_file or folder / KEY_FILE
        if key_file is None and not path.exists():
            _make_key(path)
        key = _private_key(path)
        public = folder / PUBLIC_FOLDER
        public.mkdir(exist_ok=True)
        kept = public / f"{key_id(key.public_key())}.pem"
        if not kept.exists():
            kept.write_bytes(public_pem(key.public_key()))
    except OSError as error:
        raise UnavailableError(
            f"the key that signs results cannot be used: {error}",
            field=_FIELD,
            remedy="make the file readable for this user, and the data folder writable",
        ) from error
    return key


def kept_public_keys(folder: Path) -> bytes:
    """Return the public keys of all keys that signed here, one PEM block after the other."""
    return b"".join(path.read_bytes() for path in sorted((folder / PUBLIC_FOLDER).glob("*.pem")))


def key_id(key: Ed25519PublicKey) -> str:
    """Return the lower-case hex sha-256 of the public key (DER, SubjectPublicKeyInfo)."""
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).hexdigest()


def public_pem(key: Ed25519PublicKey) -> bytes:
    """Return the public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _make_key(path: Path) -> None:
    """Write a new key whole and with its mode from the first byte on; of two that race, one stays."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".signing-key-")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except FileExistsError:
            return
    finally:
        Path(partial).unlink()


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path)
    return key


def _unusable(path: Path) -> InvalidRequestError:
    return InvalidRequestError(
        f"{path} holds no unencrypted Ed25519 private key in PEM",
        field=_FIELD,
        remedy="make one with `openssl genpkey -algorithm ed25519 -out key.pem`",
    )
