"""Old events of the audit log are written before they are dropped, step by step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from fakes.clock import FakeClock
from tightfit_service.application.access import audit_retention
from tightfit_service.application.access.audit_retention import AuditArchive
from tightfit_service.application.ports.access import AuditEvent

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def event(event_id: int, *, days: float) -> AuditEvent:
    return AuditEvent(
        event_id=event_id,
        event_time=NOW - timedelta(days=days),
        principal="key:1",
        method="tightfit.v1.CompressionService/CreateJob",
        project="vision",
        resource=f"projects/vision/jobs/{event_id}",
        code="OK",
        request_id="r",
        address="127.0.0.1:1",
    )


class Log:
    """Implements `AuditRetention`."""

    def __init__(self) -> None:
        self.events = [event(n, days=10 - n) for n in range(1, 8)]
        self.notes: list[AuditEvent] = []

    def end_of(self, before: datetime) -> int:
        return next(e.event_id for e in self.events if e.event_time >= before)

    def read_events(self, *, after: int, below: int, limit: int) -> Sequence[AuditEvent]:
        return [e for e in self.events if after < e.event_id < below][:limit]

    def drop_events(self, *, through: int, note: AuditEvent) -> None:
        self.events = [e for e in self.events if e.event_id > through]
        self.notes.append(note)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_retention, "EVENTS_PER_STEP", 2)


def ids(lines: Sequence[bytes]) -> list[int]:
    return [json.loads(line)["event_id"] for line in b"".join(lines).splitlines()]


def archive(log: Log) -> AuditArchive:
    return AuditArchive(store=log, clock=FakeClock(), operator="me@here")


def test_an_export_keeps_everything() -> None:
    log, written = Log(), list[bytes]()
    count = archive(log).export(written.append, before=NOW - timedelta(days=4.5))
    assert count == 5
    assert ids(written) == [1, 2, 3, 4, 5]
    assert json.loads(written[0].splitlines()[0])["resource"] == "projects/vision/jobs/1"
    assert len(log.events) == 7
    assert log.notes == []


def test_what_expires_is_written_first_and_every_step_leaves_an_event() -> None:
    log, written = Log(), list[bytes]()
    held_at_each_write = []

    def write(data: bytes) -> None:
        held_at_each_write.append([e.event_id for e in log.events])
        written.append(data)

    assert archive(log).expire(write, before=NOW - timedelta(days=4.5)) == 5
    assert ids(written) == [1, 2, 3, 4, 5]
    assert held_at_each_write[1] == [3, 4, 5, 6, 7]
    assert [e.event_id for e in log.events] == [6, 7]
    assert [note.resource for note in log.notes] == [
        "auditEvents/1-2",
        "auditEvents/3-4",
        "auditEvents/5-5",
    ]
    told = {(note.principal, note.method) for note in log.notes}
    assert told == {("operator:me@here", "tightfit-service audit expire")}


def test_what_could_not_be_written_is_not_dropped() -> None:
    log = Log()

    def refuse(_: bytes) -> None:
        if log.notes:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        archive(log).expire(refuse, before=NOW - timedelta(days=4.5))
    assert [e.event_id for e in log.events] == [3, 4, 5, 6, 7]
