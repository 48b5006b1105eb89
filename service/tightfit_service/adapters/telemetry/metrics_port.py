"""The HTTP port that Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, start_http_server

from tightfit_service.domain.errors import UnavailableError


class MetricsPort:
    """An HTTP server that answers every GET with the metrics in text form.

    It runs in a thread of its own, so a busy event loop does not hide the service from its monitoring.
    """

    def __init__(self, *, registry: CollectorRegistry, host: str, port: int) -> None:
        self._registry = registry
        self._host = host
        self._port = port
        self._stop: Callable[[], None] | None = None

    def start(self) -> str:
        """Listen and serve; return the address as `host:port` with the port that was bound.

        Raises:
            UnavailableError: The address cannot be bound.
        """
        try:
            server, thread = start_http_server(self._port, addr=self._host, registry=self._registry)
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror}",
                field="metrics_listen",
                remedy="choose a free port, or 0 for any, on an address of this machine",
            ) from error

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
