"""The HTTP port that Prometheus scrapes."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from tightfit_service.domain.errors import UnavailableError

log = structlog.get_logger(__name__)

TlsContext = Callable[[], ssl.SSLContext]
"""Returns the TLS that the next connection gets."""

PATIENCE_SECONDS = 10.0
"""For a handshake, and for each wait of a request that has begun."""


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_SECONDS

    def log_message(self, *_: Any) -> None:
        """Stay silent: a scrape every few seconds is no news."""


class _Server(ThreadingWSGIServer):
    """A thread for every connection; a client that is slow, or knows no TLS, holds up nobody else."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        family: socket.AddressFamily,
        registry: CollectorRegistry,
        tls: TlsContext | None,
    ) -> None:
        self.address_family = family
        self._tls = tls
        super().__init__(address, _Handler)
        self.set_app(make_wsgi_app(registry))

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a request, after the handshake where there is one."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(PATIENCE_SECONDS)
        with self._tls().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a connection that came to nothing."""
        del request
        error = sys.exc_info()[1]
        log.debug("metrics.connection_failed", address=str(client_address[0]), error=repr(error))


class MetricsPort:
    """An HTTP server that answers every GET with the metrics in text form.

    It runs in threads of its own, so a busy event loop does not hide the service from its monitoring.

    Args:
        registry: What is shown.
        host: Address to listen on.
        port: Port, 0 for a free one.
        tls: Asked for every connection; None speaks plain text.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        host: str,
        port: int,
        tls: TlsContext | None = None,
    ) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._tls = tls
        self._stop: Callable[[], None] | None = None

    def start(self) -> str:
        """Listen and serve; return the address as `host:port` with the port that was bound.

        Raises:
            UnavailableError: The address cannot be bound.
        """
        try:
            server = self._bound()
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}",
                field="metrics_listen",
                remedy="choose a free port, or 0 for any, on an address of this machine",
            ) from error
        thread = threading.Thread(target=server.serve_forever, name="metrics-port", daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return f"{self._host}:{server.server_port}"

    def stop(self) -> None:
        """Stop listening; a port that is not open is left alone."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def _bound(self) -> _Server:
        family, _, _, _, address = socket.getaddrinfo(
            self._host or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _Server(
            (str(address[0]), self._port), family=family, registry=self._registry, tls=self._tls
        )
