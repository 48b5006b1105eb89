"""Certificates of the port from files, read again when they are replaced."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from tightfit_service.adapters.access.watched_files import LOOK_SECONDS, WatchedFiles, read_bytes
from tightfit_service.application.ports.access import TlsMaterial
from tightfit_service.domain.errors import InvalidRequestError


class TlsFiles:
    """Implements `TlsSource`.

    Args:
        certificate: PEM file of the port's certificate and those it was issued by, its own first.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities of clients' certificates; None asks clients for none.
        on_read: Is told when the certificate in force ends, at the start and after each change.
        look_seconds: How often the files are looked at.

    Raises:
        InvalidRequestError: A file cannot be read, or key and certificate do not belong together.
    """

    def __init__(
        self,
        *,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
        on_read: Callable[[datetime], None] | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._on_read = on_read
        paths = [certificate, key, *([client_ca] if client_ca is not None else [])]
        self._files = WatchedFiles(paths, self._read, look_seconds=look_seconds)
        self._told = 0

    def material(self) -> TlsMaterial:
        """See `TlsSource`."""
        return self._files.value()

    def changed(self) -> bool:
        """See `TlsSource`."""
        self._files.value()
        generation = self._files.generation
        told, self._told = self._told, generation
        return generation != told

    def _read(self) -> TlsMaterial:
        material = TlsMaterial(
            key=read_bytes(self._key, field="tls_key_file"),
            certificate_chain=read_bytes(self._certificate, field="tls_cert_file"),
            client_ca=(
                read_bytes(self._client_ca, field="tls_client_ca_file") if self._client_ca else None
            ),
        )
        check(material)
        if self._on_read is not None:
            self._on_read(certificate_end(material.certificate_chain))
        return material


def check(material: TlsMaterial) -> None:
    """Check what gRPC would not complain of, and turn clients away for.

    Raises:
        InvalidRequestError: Something is no PEM, or the key is of another certificate.
    """
    end = "give PEM files of a certificate chain and of its key, without a password"
    try:
        certificates = x509.load_pem_x509_certificates(material.certificate_chain)
        key = serialization.load_pem_private_key(material.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError(
            f"certificate or key cannot be used: {error}", field="tls_cert_file", remedy=end
        ) from error
    if key.public_key() != certificates[0].public_key():
        raise InvalidRequestError(
            "the key is not that of the certificate", field="tls_key_file", remedy=end
        )
    if material.client_ca is None:
        return
    try:
        x509.load_pem_x509_certificates(material.client_ca)
    except ValueError as error:
        raise InvalidRequestError(
            f"the authorities of clients cannot be used: {error}",
            field="tls_client_ca_file",
            remedy="give a PEM file of the authorities that clients' certificates come from",
        ) from error


def certificate_end(chain: bytes) -> datetime:
    """Return until when the first certificate of a chain is valid.

    Raises:
        InvalidRequestError: It is no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(chain).not_valid_after_utc
    except ValueError as error:
        raise InvalidRequestError(
            f"the certificate cannot be parsed: {error}",
            field="tls_cert_file",
            remedy="give a PEM file",
        ) from error
