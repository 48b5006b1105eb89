"""grpc.health.v1 with watches that end when the server drains."""
# ruff: noqa: N802, D102  (gRPC gives the names, the health protocol documents them)

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import (
    health,
    health_pb2,
)

from tightfit_service.api.drain import Drain


class DrainingHealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # untyped base
    """The stock servicer, whose watches would otherwise hold up every shutdown to the end of its grace."""

    def __init__(self, *, drain: Drain) -> None:
        super().__init__()
        self._drain = drain

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        watching = asyncio.ensure_future(super().Watch(request, context))
        begun = asyncio.ensure_future(self._drain.begun())
        try:
            await asyncio.wait({watching, begun}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
            watching.cancel()
            await asyncio.wait({watching})
        if watching.cancelled():
            status = health_pb2.HealthCheckResponse.NOT_SERVING
            await context.write(health_pb2.HealthCheckResponse(status=status))
        else:
            watching.result()
