"""Cached results of work that are found, noted as used, and in the end forgotten."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, and_, delete, exists, func, select, update

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.schema import jobs, trials, work_results
from tightfit_service.adapters.storage.sql_time import seconds_from_now
from tightfit_service.application.plain import from_plain
from tightfit_service.application.ports import WorkResult
from tightfit_service.domain.job import JobState

_UNFINISHED = [state.value for state in JobState if not state.is_final]

_NOTED_EVERY = timedelta(hours=1)
"""How exact the time of the last use is: not every look-up shall write."""


def find_result(engine: Engine, project: str, input_digest: str) -> WorkResult | None:
    """Return a cached result, and note that it was used unless that was noted within the hour.

    Who is given a result can rely on it: either the note comes first, and `expire_results` leaves the
    result alone, or the result is forgotten first, and is not given.
    """
    key = and_(work_results.c.project == project, work_results.c.input_digest == input_digest)
    is_noted = func.coalesce(
        work_results.c.use_time >= seconds_from_now(-_NOTED_EVERY.total_seconds()), False
    )
    query = select(work_results.c.document, is_noted.label("is_noted")).where(key)
    with transaction(engine, writes=False) as connection:
        row = connection.execute(query).first()
    if row is None:
        return None
    if not row.is_noted:
        with transaction(engine, writes=True) as connection:
            noted = connection.execute(
                update(work_results).where(key).values(use_time=seconds_from_now(0.0))
            )
            if noted.rowcount == 0:
                return None
    return from_plain(WorkResult, row.document)


class SqlResultExpiry:
    """Implements `ResultExpiry`; the schema must be up to date."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def expire_results(self, *, unused_for: timedelta, dry_run: bool = False) -> int:
        """See `ResultExpiry`."""
        oldest_job = select(func.min(jobs.c.create_time)).where(jobs.c.state.in_(_UNFINISHED))
        with transaction(self._engine, writes=True) as connection:
            cutoff = connection.execute(select(seconds_from_now(0.0))).scalar_one() - unused_for
            began = connection.execute(oldest_job).scalar()
            if began is not None:
                # twice: for the hour within which a use is not noted, and for clocks that differ
                cutoff = min(cutoff, began - 2 * _NOTED_EVERY)
            stands_for_trial = exists().where(
                trials.c.input_digest == work_results.c.input_digest,
                trials.c.job_id == jobs.c.job_id,
                jobs.c.project == work_results.c.project,
            )
            old = and_(work_results.c.use_time < cutoff, ~stands_for_trial)
            if dry_run:
                return connection.execute(
                    select(func.count()).select_from(work_results).where(old)
                ).scalar_one()
            connection.execute(
                update(work_results)
                .where(work_results.c.use_time.is_(None))
                .values(use_time=seconds_from_now(0.0))
            )
            return connection.execute(delete(work_results).where(old)).rowcount
