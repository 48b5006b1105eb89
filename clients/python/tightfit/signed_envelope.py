"""Signed envelopes (DSSE, https://github.com/secure-systems-lab/dsse): read, and checked against keys.

Signatures are checked by the library `cryptography`, which `pip install 'tightfit[verify]'` brings.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightfit.errors import InvalidInputError, UnsupportedError
from tightfit.json_file import read_json_file, unreadable


@dataclass(frozen=True)
class Signature:
    """A signature, with what the signer says of his key."""

    key_id: str
    value: bytes
    public_key: bytes
    """In PEM; b"" where it is not brought along."""


@dataclass(frozen=True)
class Envelope:
    """What is signed, and by whom."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    @property
    def signed_bytes(self) -> bytes:
        """What the signatures are of: payload and type, each behind its length (DSSE's PAE)."""
        head = f"DSSEv1 {len(self.payload_type.encode())} {self.payload_type} {len(self.payload)} "
        return head.encode() + self.payload


def read_envelope(path: Path) -> Envelope:
    """Return the envelope in a file.

    Raises:
        InvalidInputError: It is not there, cannot be read, or holds no envelope.
    """
    content = read_json_file(path)
    try:
        return Envelope(
            payload_type=str(content["payloadType"]),
            payload=base64.b64decode(content["payload"], validate=True),
            signatures=tuple(
                Signature(
                    key_id=str(item.get("keyid", "")),
                    value=base64.b64decode(item["sig"], validate=True),
                    public_key=str(item.get("public_key", "")).encode(),
                )
                for item in content["signatures"]
            ),
        )
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise unreadable(path, "a DSSE envelope") from error


def signer(envelope: Envelope, trusted_keys: bytes) -> tuple[str, str]:
    """Return the id of the key that signed, or "" and what is wrong.

    Args:
        envelope: The envelope.
        trusted_keys: Public keys in PEM, one after the other; without any, those that the signatures
            bring along are used.

    Raises:
        InvalidInputError: The trusted keys cannot be read.
        UnsupportedError: `cryptography` is not installed.
    """
    signed = envelope.signed_bytes
    trusted = _load_keys(trusted_keys) if trusted_keys else {}
    for signature in envelope.signatures:
        keys = trusted if trusted_keys else _embedded(signature.public_key)
        # key ids are hints in DSSE: a key that fits counts, whatever it is called
        for key_id, key in keys.items():
            if _is_valid(key, signature.value, signed):
                return key_id, ""
    if trusted_keys:
        named = ", ".join(item.key_id[:16] for item in envelope.signatures) or "none"
        return "", f"no signature by a given key (signed by: {named})"
    return "", "the signature does not fit what is signed"


def _embedded(pem: bytes) -> Mapping[str, Any]:
    try:
        return _load_keys(pem)
    except InvalidInputError:
        return {}


def _load_keys(pem: bytes) -> dict[str, Any]:
    """Return Ed25519 public keys by id, from PEM blocks one after the other.

    Raises:
        InvalidInputError: A block is no such key, or there is none.
        UnsupportedError: `cryptography` is not installed.
    """
    serialization, kind = _crypto()
    keys = {}
    end = b"-----END PUBLIC KEY-----"
    for block in pem.split(end)[:-1]:
        try:
            key = serialization.load_pem_public_key(block.lstrip() + end + b"\n")
        except Exception as error:  # the library has several of its own for bad keys
            raise _bad_keys() from error
        if not isinstance(key, kind):
            raise _bad_keys()
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        keys[hashlib.sha256(der).hexdigest()] = key
    if not keys:
        raise _bad_keys()
    return keys


def _bad_keys() -> InvalidInputError:
    return InvalidInputError(
        "the keys are not Ed25519 public keys in PEM",
        field="--key",
        remedy="`tightfit-service public-keys` prints those of a server",
    )


def _is_valid(key: Any, signature: bytes, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def _crypto() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise UnsupportedError(
            "signatures cannot be checked: the library cryptography is not installed",
            remedy="pip install 'tightfit[verify]'",
        ) from error
    return serialization, Ed25519PublicKey
