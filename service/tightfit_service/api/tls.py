"""TLS of the gRPC port, with certificates that may be replaced while the server runs."""

from __future__ import annotations

import grpc

from tightfit_service.application.ports.access import TlsMaterial, TlsSource


def server_credentials(source: TlsSource) -> grpc.ServerCredentials:
    """Return credentials that ask the source at every handshake; open connections keep what they have.

    With a `client_ca` at the start, clients without a certificate of it are turned away. gRPC for
    Python offers no way to ask for certificates without demanding them.
    """
    first = source.material()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return _configuration(source.material()) if source.changed() else None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        fetch,  # type: ignore[arg-type]  # gRPC takes None for "as before", which its types forgot
        require_client_authentication=first.client_ca is not None,
    )


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate_chain)], root_certificates=material.client_ca
    )
