"""The connection to a Ray cluster, as a client: losing the cluster must not end the service.

A process that joins a cluster as a driver of its own is ended by Ray when it loses the cluster; Ray
Client (`ray://`) keeps the driver on the head node instead, and a lost connection is an exception here.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tightfit_service.adapters.execution.messages import Message
from tightfit_service.adapters.execution.node_worker import NodeWorker
from tightfit_service.domain.errors import InvalidRequestError, UnavailableError

NAMESPACE = "tightfit"

_PROBE_SECONDS = 3.0
_DEFAULT_PORT = 10_001
_ATTEMPTS = 3


class RayNodeWorker(NodeWorker):
    """A node worker that says which of Ray's nodes it is on."""

    async def start(self) -> Message:
        """See `NodeWorker`."""
        hello = await super().start()
        return {**hello, "node": importlib.import_module("ray").util.get_node_ip_address()}


class RayLink:
    """Connects to a cluster, and again when the connection is lost.

    Args:
        address: `ray://HOST:PORT` of the cluster's client server.
        token_file: File with the cluster's token; empty for a cluster without one.

    Raises:
        InvalidRequestError: The address has another form, or the token cannot be read.
    """

    def __init__(self, *, address: str, token_file: str) -> None:
        parts = urlsplit(address)
        if parts.scheme != "ray" or not parts.hostname:
            raise InvalidRequestError(
                f"ray_address is {address!r}",
                field="ray_address",
                remedy="give the address of the head's client server, such as ray://ray-head:10001",
            )
        if token_file and not os.access(token_file, os.R_OK):
            raise InvalidRequestError(
                "the file with Ray's token cannot be read",
                field="ray_token_file",
                remedy="mount the cluster's token where the service can read it",
            )
        self._address = address
        self._host_and_port = (parts.hostname, parts.port or _DEFAULT_PORT)
        self._token_file = token_file
        self._ray: Any = None
        self._lock = asyncio.Lock()
        self.generation = 0
        """Rises with every connection; what was made in an earlier one is gone."""

    @property
    def ray(self) -> Any:
        """The module, once connected."""
        return self._ray

    @property
    def is_connected(self) -> bool:
        """Whether the connection holds, as far as is known."""
        return self._ray is not None and bool(self._ray.is_initialized())

    async def connect(self) -> None:
        """Connect unless connected.

        Raises:
            UnavailableError: Ray is not installed, not reachable, or refuses.
        """
        async with self._lock:
            if not self.is_connected:
                await asyncio.to_thread(self._connect)
                self.generation += 1

    async def disconnect(self) -> None:
        """Let go of the cluster, and of all that was made there."""
        if self._ray is not None:
            with suppress(Exception):
                await asyncio.to_thread(self._ray.shutdown)

    async def drop(self) -> None:
        """Give up a connection that does not answer, so that `connect` makes a new one."""
        async with self._lock:
            await self.disconnect()

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that live.

        Raises:
            UnavailableError: The cluster cannot be asked.
        """
        try:
            found = await asyncio.to_thread(self._ray.nodes)
        except Exception as error:
            raise self._unreachable(error) from error
        return [node for node in found if node["Alive"]]

    def _connect(self) -> None:
        # Ray reads these when it is imported; unset, its mode would depend on the home folder
        os.environ["RAY_AUTH_MODE"] = "token" if self._token_file else "disabled"
        if self._token_file:
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(self._token_file).resolve())
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            # Ray's client waits for half a minute where nobody listens
            socket.create_connection(self._host_and_port, timeout=_PROBE_SECONDS).close()
        except OSError as error:
            raise self._unreachable(error) from error
        try:
            self._ray = importlib.import_module("ray")
        except ImportError as error:
            raise UnavailableError(
                "Ray is not installed",
                field="executor",
                remedy="pip install 'tightfit-service[ray]'",
            ) from error
        # what matters of Ray's own words arrives as exceptions
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._join(attempts=_ATTEMPTS)

    def _join(self, *, attempts: int) -> None:
        """Connect; a head that is busy may refuse, because it starts a process for each client."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._ray.shutdown()
                self._ray.init(
                    self._address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
        except Exception as error:
            with suppress(Exception):
                self._ray.shutdown()
            if attempts <= 1:
                raise self._unreachable(error) from error
            self._join(attempts=attempts - 1)

    def _unreachable(self, error: Exception) -> UnavailableError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UnavailableError(
            f"the Ray cluster at {self._address} cannot be used: {reason}",
            field="ray_address",
            remedy="check that the head runs with a client server, that network policies let the "
            "service in, that both have the same version of Ray and Python, and the same token",
        )
