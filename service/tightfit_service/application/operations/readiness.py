"""Whether this server can serve: the database and the artifact store are asked now and then.

A server that has lost its database or its store still answers, but every answer would be an error: it
tells balancers to look elsewhere until both are back. It is alive all the same, and must not be killed for
what another process does not do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from tightfit_service.application.ports import ArtifactStores, Telemetry
from tightfit_service.application.ports.diagnosis import DatabaseProbe
from tightfit_service.domain.errors import TightfitError

log = structlog.get_logger(__name__)

CHECK_SECONDS = 15.0
ANSWER_SECONDS = 10.0
"""A check that takes longer counts as failed; its thread is left to end by itself."""
PATIENCE = 4
"""Checks in a row that fail before the server calls itself not ready: clients repeat calls over a gap."""


class Listener(Protocol):
    """Is told whether calls can be served."""

    async def __call__(self, *, is_ready: bool) -> None:
        """Pass it on to those who ask."""
        ...


class Readiness:
    """Checks dependencies for as long as it runs. Lives on one event loop."""

    def __init__(
        self,
        *,
        database: DatabaseProbe,
        artifacts: ArtifactStores,
        telemetry: Telemetry,
        period_seconds: float = CHECK_SECONDS,
    ) -> None:
        self._telemetry = telemetry
        self._database = database
        self._checks: dict[str, Callable[[], None]] = {
            "database": self._look_at_queue,
            "artifacts": artifacts.check,
        }
        self._period_seconds = period_seconds
        self._failures = dict.fromkeys(self._checks, 0)
        self._task: asyncio.Task[None] | None = None
        self.is_ready = True

    async def start(self, on_change: Listener) -> None:
        """Check once, then again and again; `on_change` is told whenever the answer changes."""
        await self.check(on_change)
        self._task = asyncio.create_task(self._run(on_change), name="readiness")

    async def stop(self) -> None:
        """Check no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def check(self, on_change: Listener) -> None:
        """Check everything once."""
        await asyncio.gather(*(self._check(name) for name in self._checks))
        ready = all(count < PATIENCE for count in self._failures.values())
        if ready is not self.is_ready:
            self.is_ready = ready
            log.warning("readiness.changed", is_ready=ready)
            await on_change(is_ready=ready)

    async def _run(self, on_change: Listener) -> None:
        while True:
            await asyncio.sleep(self._period_seconds)
            await self.check(on_change)

    async def _check(self, name: str) -> None:
        start, is_up = time.perf_counter(), False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.to_thread(self._checks[name])
            is_up = True
        except (TightfitError, TimeoutError) as error:
            log.warning("dependency.failed", dependency=name, error=str(error) or "no answer")
        self._failures[name] = 0 if is_up else self._failures[name] + 1
        seconds = time.perf_counter() - start
        self._telemetry.dependency_checked(name, is_up=is_up, seconds=seconds)

    def _look_at_queue(self) -> None:
        view = self._database.queue()
        oldest = view.oldest_create_time
        waits = 0.0 if oldest is None else (view.now - oldest).total_seconds()
        self._telemetry.queue_seen(view.counts, oldest_seconds=max(0.0, waits))
