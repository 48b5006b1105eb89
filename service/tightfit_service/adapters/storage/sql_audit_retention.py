"""Old events of the audit log in a SQL database: read in order, and removed by the owner of the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, Engine, delete, func, insert, select
from sqlalchemy.exc import DBAPIError

from tightfit_service.adapters.storage.database import POSTGRESQL, transaction
from tightfit_service.adapters.storage.schema import audit_events
from tightfit_service.application.ports.access import AuditEvent
from tightfit_service.domain.errors import PermissionDeniedError

_NOT_THE_OWNER = "42501"
"""State `insufficient_privilege` of PostgreSQL."""


class SqlAuditRetention:
    """Implements `AuditRetention`. The schema must be up to date; every method is one transaction.

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def end_of(self, before: datetime) -> int:
        """See `AuditRetention`."""
        # ids rise with time: the walk from the oldest one ends at the first that is kept
        kept = (
            select(audit_events.c.event_id)
            .where(audit_events.c.event_time >= before)
            .order_by(audit_events.c.event_id)
            .limit(1)
        )
        with transaction(self._engine, writes=False) as connection:
            first = connection.execute(kept).scalar()
            if first is not None:
                return int(first)
            last = connection.execute(select(func.max(audit_events.c.event_id))).scalar()
            return 0 if last is None else int(last) + 1

    def read_events(self, *, after: int, below: int, limit: int) -> Sequence[AuditEvent]:
        """See `AuditRetention`."""
        query = (
            select(audit_events)
            .where(audit_events.c.event_id > after, audit_events.c.event_id < below)
            .order_by(audit_events.c.event_id)
            .limit(limit)
        )
        with transaction(self._engine, writes=False) as connection:
            return [AuditEvent(**row._asdict()) for row in connection.execute(query)]

    def drop_events(self, *, through: int, note: AuditEvent) -> None:
        """See `AuditRetention`."""
        told = asdict(note)
        del told["event_id"]
        try:
            with (
                transaction(self._engine, writes=True) as connection,
                _without_refusal(connection),
            ):
                # first, so that SQLite, which counts on from the greatest id, uses none twice
                connection.execute(insert(audit_events).values(**told))
                connection.execute(delete(audit_events).where(audit_events.c.event_id <= through))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _NOT_THE_OWNER:
                raise
            raise PermissionDeniedError(
                "the account at the database does not own the audit log",
                field="database_url",
                remedy="give the URL with the account that migrated the database",
            ) from error


@contextmanager
def _without_refusal(connection: Connection) -> Iterator[None]:
    """Take back for this transaction that the database refuses to delete events.

    The change of the table is part of the transaction: nobody else sees it, a server that writes an
    event meanwhile waits, and an end in the middle leaves the trigger as it was.
    """
    if connection.dialect.name == POSTGRESQL:
        connection.exec_driver_sql(
            "ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_change"
        )
        yield
        connection.exec_driver_sql("ALTER TABLE audit_events ENABLE TRIGGER audit_events_no_change")
        return
    # SQLite cannot switch triggers off
    definition = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = 'audit_events_no_delete'"
    ).scalar_one()
    connection.exec_driver_sql("DROP TRIGGER audit_events_no_delete")
    yield
    connection.exec_driver_sql(definition)
