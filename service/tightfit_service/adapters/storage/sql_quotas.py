"""Quotas of projects, and what projects use, in a SQL database."""

from __future__ import annotations

from dataclasses import asdict, fields

from sqlalchemy import Engine, Select, delete, func, insert, select, union_all

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import assets, jobs, project_quotas, work_outputs
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
        with transaction(self._engine, writes=False) as connection:
            by_state = {row[0]: row[1] for row in connection.execute(counts)}
            stored_bytes = int(connection.execute(_stored_bytes(project)).scalar_one())
        running, queued = (by_state.get(state, 0) for state in states)
        return Usage(running_jobs=running, queued_jobs=queued, stored_bytes=stored_bytes)


def _stored_bytes(project: str) -> Select[int]:
    """Return the query of the bytes that a project's records stand for; bytes that several name count once."""
    named = union_all(
        select(assets.c.digest, assets.c.size_bytes).filter_by(project=project),
        select(work_outputs.c.digest, work_outputs.c.size_bytes).filter_by(project=project),
    ).subquery("named")
    # a server that did not note sizes may have written some of the rows of a digest
    once = (
        select(func.max(named.c.size_bytes).label("size_bytes"))
        .group_by(named.c.digest)
        .subquery("once")
    )
    return select(func.coalesce(func.sum(once.c.size_bytes), 0))
