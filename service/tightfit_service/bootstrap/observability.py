"""Logs, traces and the metrics port."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import structlog

from tightfit_service.adapters.access.tls_contexts import TlsContexts
from tightfit_service.adapters.telemetry.log_output import lossy
from tightfit_service.adapters.telemetry.metrics_port import MetricsPort, TlsContext
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.application.tracing import use_tracer
from tightfit_service.domain.errors import UnsupportedError
from tightfit_service.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Write structured log lines to stderr in the chosen form."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(lossy(sys.stderr)),
        cache_logger_on_first_use=False,
    )


def start_traces(settings: Settings) -> Callable[[], None]:
    """Send traces where the settings want them, and return what sends the rest of them at the end.

    Raises:
        UnsupportedError: The libraries for it are not installed.
    """
    if not settings.traces_endpoint:
        return lambda: None
    try:
        from tightfit_service.adapters.telemetry.otel import otlp_tracer

        tracer = otlp_tracer(
            settings.traces_endpoint,
            version=metadata.version("tightfit-service"),
            instance=socket.gethostname(),
        )
    except ImportError as error:
        raise UnsupportedError(
            "what sends traces is not installed where this server runs",
            field="traces_endpoint",
            remedy="install tightfit-service[otel], or leave the setting empty",
        ) from error
    use_tracer(tracer)
    return tracer.close


def make_metrics_port(settings: Settings, telemetry: PrometheusTelemetry) -> MetricsPort | None:
    """Return the port that Prometheus scrapes, or None where it is turned off."""
    if not settings.metrics_listen:
        return None
    host, _, port = settings.metrics_listen.rpartition(":")
    return MetricsPort(
        registry=telemetry.registry, host=host, port=int(port), tls=_metrics_tls(settings)
    )


def _metrics_tls(settings: Settings) -> TlsContext | None:
    if not settings.metrics_tls:
        return None
    client_ca = settings.metrics_client_ca_file
    contexts = TlsContexts(
        certificate=Path(settings.tls_cert_file),
        key=Path(settings.tls_key_file),
        client_ca=Path(client_ca) if client_ca else None,
    )
    return contexts.context
