"""Jobs that ended long ago are found and deleted."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, case, func, select

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import jobs
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.domain.errors import NotFoundError
from tightfit_service.domain.job import JobState

_FINAL = [state.value for state in JobState if state.is_final]

_JOBS_PER_LOOK = 500


class SqlJobExpiry:
    """Implements `JobExpiry`; the schema must be up to date.

    Each job goes in a transaction of its own, so that servers which write jobs wait for one at most.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine
        self._store = SqlStore(engine=engine)

    def expire_jobs(self, *, ended_before: datetime, dry_run: bool = False) -> int:
        """See `JobExpiry`."""
        old = _ended(ended_before, self._engine.dialect.name)
        if dry_run:
            with transaction(self._engine, writes=False) as connection:
                counted = connection.execute(select(func.count()).select_from(jobs).where(old))
                return int(counted.scalar_one())
        count = 0
        while True:
            with transaction(self._engine, writes=False) as connection:
                found = connection.execute(
                    select(jobs.c.project, jobs.c.job_id).where(old).limit(_JOBS_PER_LOOK)
                ).all()
            for row in found:
                # its user, or another server, may have been faster
                with suppress(NotFoundError):
                    self._store.delete_job(row.project, row.job_id)
                    count += 1
            if len(found) < _JOBS_PER_LOOK:
                return count


def _ended(before: datetime, dialect: str) -> ColumnElement[bool]:
    document: ColumnElement[Any] = jobs.c.document
    if dialect == "sqlite":
        # which, unlike PostgreSQL, takes any text for JSON and fails when it looks into it
        document = case((func.json_valid(document), document))
    return and_(
        jobs.c.state.in_(_FINAL),
        # found by the index: no job ends before it is created
        jobs.c.create_time < before,
        # texts in the form of ISO 8601 and in one zone are in the order of their times
        document["end_time"].as_string() < before.astimezone(UTC).isoformat(),
    )
