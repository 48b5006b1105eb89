"""Events of the audit log are stored before their calls are answered, many at a time, whatever fails."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from structlog.testing import capture_logs

from fakes.access import NOW, InMemoryEvents
from tightfit_service.application.access.audit import AuditLog
from tightfit_service.application.ports import Page
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.errors import UnavailableError


def _event(number: int = 0) -> AuditEvent:
    return AuditEvent(
        event_time=NOW,
        principal="key:1",
        method="tightfit.v1.CompressionService/CancelJob",
        project="p",
        resource=f"projects/p/jobs/{number}",
        code="OK",
        request_id="r",
        address="ipv4:127.0.0.1:1",
    )


class SlowEvents(InMemoryEvents):
    """Holds up the first write until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def append_events(self, events: Sequence[AuditEvent]) -> None:
        assert self.go.wait(10)
        super().append_events(events)


async def test_an_event_is_stored_when_the_call_goes_on() -> None:
    store = InMemoryEvents()
    log = AuditLog(store=store)
    with capture_logs() as lines:
        await log.record(_event())
    assert [event.resource for event in store.events] == ["projects/p/jobs/0"]
    (line,) = lines
    assert (line["event"], line["principal"], line["code"]) == ("audit", "key:1", "OK")
    assert len(await log.list("p", Page(size=9))) == len(await log.list("*", Page(size=9))) == 1
    assert await log.list("other", Page(size=9)) == []
    await log.stop()


async def test_what_comes_during_a_write_is_written_together() -> None:
    store = SlowEvents()
    log = AuditLog(store=store)
    recording = [asyncio.ensure_future(log.record(_event(number))) for number in range(101)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in recording)
    store.go.set()
    await asyncio.gather(*recording)
    assert sum(store.batches) == 101
    assert len(store.batches) <= 2
    assert [event.resource for event in store.events] == [
        f"projects/p/jobs/{number}" for number in range(101)
    ]
    await log.stop()


async def test_a_database_that_fails_is_told_and_holds_up_nobody() -> None:
    class Failing(InMemoryEvents):
        is_down = True

        def append_events(self, events: Sequence[AuditEvent]) -> None:
            if self.is_down:
                raise UnavailableError("the database is away")
            super().append_events(events)

    store = Failing()
    log = AuditLog(store=store)
    with capture_logs() as lines:
        await asyncio.wait_for(log.record(_event(1)), 5)
    assert [line["event"] for line in lines] == ["audit", "audit events not stored"]
    store.is_down = False
    await log.record(_event(2))
    assert [event.resource for event in store.events] == ["projects/p/jobs/2"]
    await log.stop()


async def test_what_waits_is_written_before_the_end() -> None:
    store = SlowEvents()
    log = AuditLog(store=store)
    recording = asyncio.ensure_future(log.record(_event()))
    await asyncio.sleep(0.02)
    stopping = asyncio.ensure_future(log.stop())
    await asyncio.sleep(0.02)
    store.go.set()
    await stopping
    assert len(store.events) == 1
    await recording
    await log.stop()
