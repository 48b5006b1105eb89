"""What a look at the deployment itself needs from the database and from the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tightfit_service.domain.job import JobState


@dataclass(frozen=True, kw_only=True)
class QueueView:
    """Jobs that are not final, as the database has them.

    Attributes:
        counts: By state.
        oldest_create_time: Of the jobs in the queue; None when none waits.
        now: The database's clock.
    """

    counts: Mapping[JobState, int]
    oldest_create_time: datetime | None
    now: datetime


@dataclass(frozen=True, kw_only=True)
class SchemaView:
    """Which schema the database has, and which one this version works on."""

    present: str
    expected: str


class DatabaseProbe(Protocol):
    """Looks at the database without changing it. Raises UnavailableError where it cannot be reached."""

    def queue(self) -> QueueView:
        """Return how long the queue is; served by an index, however many jobs ended."""
        ...

    def schema(self) -> SchemaView:
        """Return the schema's revision."""
        ...

    def describe(self) -> str:
        """Return kind and version, such as `PostgreSQL 15.18`; no address, no user, no password."""
        ...
