"""TLS of ports that Python serves itself, with certificates that may be replaced while the server runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from tightfit_service.adapters.access.tls_files import check
from tightfit_service.adapters.access.watched_files import LOOK_SECONDS, WatchedFiles, read_bytes
from tightfit_service.application.ports.access import TlsMaterial
from tightfit_service.domain.errors import InvalidRequestError


class TlsContexts:
    """The context for the next handshake; connections that are open keep what they have. Thread-safe.

    Args:
        certificate: PEM file of the port's certificate and those it was issued by, its own first.
        key: PEM file of its private key.
        client_ca: PEM file of authorities; clients must have a certificate of theirs. None asks for none.
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
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        paths = [certificate, key, *([client_ca] if client_ca is not None else [])]
        self._files = WatchedFiles(paths, self._read, look_seconds=look_seconds)

    def context(self) -> ssl.SSLContext:
        """Return what is in force; broken new files change nothing."""
        return self._files.value()

    def _read(self) -> ssl.SSLContext:
        check(
            TlsMaterial(
                key=read_bytes(self._key, field="tls_key_file"),
                certificate_chain=read_bytes(self._certificate, field="tls_cert_file"),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequestError(
                f"certificate or key cannot be used: {error}",
                field="tls_cert_file",
                remedy="give PEM files of a certificate chain and of its key, without a password",
            ) from error
        if self._client_ca is not None:
            self._trust(context, self._client_ca)
        return context

    @staticmethod
    def _trust(context: ssl.SSLContext, authorities: Path) -> None:
        text = read_bytes(authorities, field="metrics_client_ca_file").decode("ascii", "replace")
        try:
            context.load_verify_locations(cadata=text)
        except (ValueError, ssl.SSLError) as error:
            raise InvalidRequestError(
                f"the authorities of clients cannot be used: {error}",
                field="metrics_client_ca_file",
                remedy="give a PEM file of the authorities that clients' certificates come from",
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
