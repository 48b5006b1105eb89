"""The audit log: every event as a line of the log and as a row that nobody changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import structlog

from tightfit_service.application.ports import Page
from tightfit_service.application.ports.access import AuditEvent, AuditStore
from tightfit_service.domain.access import ALL_PROJECTS

MOST_PER_WRITE = 500
MOST_WAITING = 10_000
"""Events in memory while the database is slow; beyond, calls wait before they are answered."""

log = structlog.get_logger(__name__)


def operator_event(
    *, now: datetime, operator: str, command: str, resource: str, project: str = ""
) -> AuditEvent:
    """Return the event of what was done by a command at the database itself, past all roles.

    Args:
        now: When.
        operator: Who, as the machine knows it.
        command: Its words, such as `quota set`.
        resource: What it changed.
        project: Of the resource; "" for what is of no project.
    """
    return AuditEvent(
        event_time=now,
        principal=f"operator:{operator}",
        method=f"tightfit-service {command}",
        project=project,
        resource=resource,
        code="OK",
        request_id="",
        address="",
    )


class AuditLog:
    """Writes events, many in one transaction where many come at once. Lives on one event loop."""

    def __init__(self, *, store: AuditStore) -> None:
        self._store = store
        self._queue: asyncio.Queue[tuple[AuditEvent, asyncio.Future[None]]] = asyncio.Queue(
            MOST_WAITING
        )
        self._writer: asyncio.Task[None] | None = None

    async def record(self, event: AuditEvent) -> None:
        """Write an event; returns once it is in the database, or cannot be put there.

        What the event tells of has happened already and is not undone for it: the line in the log
        remains, and a second one says what is missing in the database.
        """
        log.info(
            "audit",
            principal=event.principal,
            called=event.method,
            resource=event.resource,
            code=event.code,
            address=event.address,
        )
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        written = asyncio.get_running_loop().create_future()
        await self._queue.put((event, written))
        await written

    async def list(self, project: str, page: Page, *, principal: str = "") -> Sequence[AuditEvent]:
        """Return events of a project, or of all with ALL_PROJECTS, newest first."""
        wanted = None if project == ALL_PROJECTS else project
        return await asyncio.to_thread(self._store.list_events, wanted, principal, page)

    async def stop(self) -> None:
        """Write what waits, and end."""
        if self._writer is None:
            return
        await self._queue.join()
        writer, self._writer = self._writer, None
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer

    async def _write(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < MOST_PER_WRITE:
                batch.append(self._queue.get_nowait())
            try:
                await asyncio.to_thread(self._store.append_events, [event for event, _ in batch])
            except Exception:
                # Whatever it was, the next events must be written again.
                log.exception("audit events not stored", count=len(batch))
            finally:
                for _, written in batch:
                    if not written.done():
                        written.set_result(None)
                    self._queue.task_done()
