"""Signing what is said of a result, and the digests of the files that it consists of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class StatementSigner(Protocol):
    """Signs statements with the deployment's key."""

    @property
    def key_id(self) -> str:
        """Which key signs: the lower-case hex sha-256 of the public key (DER, SubjectPublicKeyInfo)."""
        ...

    def sign(self, payload_type: str, payload: bytes) -> bytes:
        """Return the payload in a signed envelope, as JSON. Equal payloads give equal envelopes."""
        ...


class FileSetReader(Protocol):
    """Looks into exported models that are several files."""

    def digests(self, path: Path) -> Mapping[str, str]:
        """Return name and lower-case hex sha-256 of every file in an archive.

        Raises:
            IntegrityError: It is no archive as the exporters write them.
        """
        ...
