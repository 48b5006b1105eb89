"""Old events of the audit log, handed to an archive and then dropped by an operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from tightfit_service.application.access.audit import operator_event
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import Clock
from tightfit_service.application.ports.access import AuditEvent, AuditRetention

EVENTS_PER_STEP = 10_000
"""Read, written and dropped at a time: servers that write events wait for one such step at most."""

Write = Callable[[bytes], None]
"""Returns once the bytes are where they outlive this process."""


class AuditArchive:
    """Hands old events on, oldest first, as lines of JSON with all that is known of each.

    Args:
        store: The audit log.
        clock: For the events that tell of what was dropped.
        operator: Who does it, for those events.
    """

    def __init__(self, *, store: AuditRetention, clock: Clock, operator: str) -> None:
        self._store = store
        self._clock = clock
        self._operator = operator

    def export(self, write: Write, *, before: datetime) -> int:
        """Write the events that are older than `before`, and return how many there were."""
        return self._hand_over(write, before=before, drops=False)

    def expire(self, write: Write, *, before: datetime) -> int:
        """Do the same, and drop each event once it is written.

        Every step leaves an event of its own. What ends this midway leaves events that are written and
        not dropped, never the other way round.
        """
        return self._hand_over(write, before=before, drops=True)

    def _hand_over(self, write: Write, *, before: datetime, drops: bool) -> int:
        end = self._store.end_of(before)
        count = after = 0
        while events := self._store.read_events(after=after, below=end, limit=EVENTS_PER_STEP):
            write(b"".join(json.dumps(to_plain(event)).encode() + b"\n" for event in events))
            after = events[-1].event_id
            if drops:
                self._store.drop_events(through=after, note=self._note(events[0].event_id, after))
            count += len(events)
        return count

    def _note(self, first: int, last: int) -> AuditEvent:
        return operator_event(
            now=self._clock.now(),
            operator=self._operator,
            command="audit expire",
            resource=f"auditEvents/{first}-{last}",
        )
