"""Who may call, and by which certificates and keys."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import grpc
from sqlalchemy import Engine

from tightfit_service.adapters.access.factory import (
    make_admin_key,
    open_access,
    open_tls,
)
from tightfit_service.adapters.access.oidc import OidcSettings
from tightfit_service.adapters.access.tls_files import certificate_end
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.api.tls import server_credentials
from tightfit_service.application.access.callers import Access
from tightfit_service.application.operations.diagnosis import (
    Exposure,
)
from tightfit_service.bootstrap.clock import SystemClock
from tightfit_service.bootstrap.operators import operator_name
from tightfit_service.bootstrap.storage import migrate, open_records
from tightfit_service.settings import Settings


def create_admin_key(settings: Settings, *, display_name: str, valid_days: float) -> str:
    """Store a key that opens everything, and return its token, which is never shown again.

    Raises:
        TightfitError: The database cannot be used, or the name is unfit.
    """
    migrate(settings)
    clock = SystemClock()
    engine = open_records(settings)
    try:
        return make_admin_key(
            engine=engine,
            clock=clock,
            display_name=display_name,
            expire_time=clock.now() + timedelta(days=valid_days) if valid_days else None,
            operator=operator_name(),
        )
    finally:
        engine.dispose()


def make_access(settings: Settings, engine: Engine, clock: SystemClock) -> Access:
    """Compose what says who calls and whether they may."""
    oidc = None
    if settings.oidc_issuer:
        oidc = OidcSettings(
            issuer=settings.oidc_issuer,
            audience=settings.oidc_audience,
            algorithms=tuple(filter(None, settings.oidc_algorithms.replace(",", " ").split())),
            roles_claim=settings.oidc_roles_claim,
            leeway_seconds=settings.oidc_leeway_seconds,
        )
    return open_access(
        engine=engine,
        clock=clock,
        required=settings.auth_required,
        policy_file=settings.access_policy_file,
        oidc=oidc,
        jwks_url=settings.oidc_jwks_url,
        jwks_file=settings.oidc_jwks_file,
        jwks_ca_file=settings.oidc_ca_file,
    )


def exposure_of(settings: Settings) -> Exposure:
    """Return how far the ports of a server are open, and until when its certificates hold."""
    certificate = Path(settings.tls_cert_file)
    ends = {"grpc": lambda: certificate_end(certificate.read_bytes())}
    return Exposure(
        listen=settings.listen,
        has_tls=bool(settings.tls_cert_file),
        asks_who_calls=settings.auth_required,
        certificates=ends if settings.tls_cert_file else {},
    )


def port_credentials(
    settings: Settings, telemetry: PrometheusTelemetry
) -> grpc.ServerCredentials | None:
    """Return the TLS of the gRPC port, or None without."""
    files = open_tls(
        certificate=settings.tls_cert_file,
        key=settings.tls_key_file,
        client_ca=settings.tls_client_ca_file,
        on_read=lambda end: telemetry.certificate_expires("grpc", end),
    )
    return server_credentials(files) if files is not None else None
