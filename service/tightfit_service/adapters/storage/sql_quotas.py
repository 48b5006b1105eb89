"""Quotas of projects, and what projects use, in a SQL database."""

from __future__ import annotations

from dataclasses import asdict, fields

from sqlalchemy import Engine, delete, func, insert, select

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import assets, jobs, project_quotas
from tightfit_service.adapters.storage.sql_errors import repeated
from tightfit_service.domain.job import JobState
from tightfit_service.domain.quota import QuotaOverrides, Usage


class SqlQuotaStore:
    """Implements `QuotaStore`; the schema must be up to date.

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def get_quota(self, project: str) -> QuotaOverrides:
        """See `QuotaStore`."""
        query = select(project_quotas).filter_by(project=project)
        with transaction(self._engine, writes=False) as connection:
            row = connection.execute(query).first()
        if row is None:
            return QuotaOverrides()
        return QuotaOverrides(**{f.name: getattr(row, f.name) for f in fields(QuotaOverrides)})

    @repeated
    def set_quota(self, project: str, overrides: QuotaOverrides) -> None:
        """See `QuotaStore`."""
        with transaction(self._engine, writes=True) as connection:
            connection.execute(delete(project_quotas).filter_by(project=project))
            if overrides != QuotaOverrides():
                connection.execute(
                    insert(project_quotas).values(project=project, **asdict(overrides))
                )

    def get_usage(self, project: str) -> Usage:
        """See `QuotaStore`."""
        states = (JobState.RUNNING.value, JobState.QUEUED.value)
        counts = (
            select(jobs.c.state, func.count())
            .where(jobs.c.project == project, jobs.c.state.in_(states))
            .group_by(jobs.c.state)
        )
        stored = select(func.coalesce(func.sum(assets.c.size_bytes), 0)).filter_by(project=project)
        with transaction(self._engine, writes=False) as connection:
            by_state = {row[0]: row[1] for row in connection.execute(counts)}
            stored_bytes = int(connection.execute(stored).scalar_one())
        running, queued = (by_state.get(state, 0) for state in states)
        return Usage(running_jobs=running, queued_jobs=queued, stored_bytes=stored_bytes)
