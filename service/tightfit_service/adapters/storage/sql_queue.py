"""Who runs which job: leases by the database's clock, and the order of the queue."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Row,
    ScalarSelect,
    Select,
    Update,
    func,
    literal,
    select,
    update,
)

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.documents import document_value, read_document
from tightfit_service.adapters.storage.rows import (
    find_job,
    job_columns,
    job_from,
    lock_project,
)
from tightfit_service.adapters.storage.schema import (
    job_events,
    job_leases,
    jobs,
    project_quotas,
    trials,
)
from tightfit_service.adapters.storage.sql_chain import as_table, make_chain, upsert
from tightfit_service.adapters.storage.sql_errors import repeated
from tightfit_service.adapters.storage.sql_time import seconds_from_now
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import Claim, Lease, LostLife
from tightfit_service.domain.errors import UnreadableRecordError
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.quota import Quota
from tightfit_service.domain.trial import TrialState

log = structlog.get_logger(__name__)

_QUEUED, _RUNNING = JobState.QUEUED.value, JobState.RUNNING.value


class SqlJobQueue:
    """Implements `JobQueue` on any database that SQLAlchemy knows; the schema must be up to date.

    On PostgreSQL claims do not wait for one another: rows that another transaction holds are skipped.
    On SQLite one transaction at a time writes. Safe for many threads and processes; every method may
    raise, besides what the port says:

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine
        self._passed_over: set[str] = set()
        """Ids of jobs that cannot be read here."""

    @repeated
    def claim_job(
        self,
        owner: str,
        *,
        lease_seconds: float,
        now: datetime,
        quota: Quota,
        take_over: bool = True,
    ) -> Claim | None:
        """See `JobQueue`."""
        with transaction(self._engine, writes=True) as connection:
            while True:
                row = None
                if take_over:
                    row = connection.execute(_abandoned(owner, self._passed_over)).first()
                if row is None:
                    row = _next_queued(connection, quota, self._passed_over)
                if row is None:
                    return None
                try:
                    return _take(connection, row, owner, lease_seconds, now)
                except UnreadableRecordError as error:
                    log.warning("queue.job_unreadable", job_id=row.job_id, error=str(error))
                    self._passed_over.add(row.job_id)

    @repeated
    def take_over_job(
        self, job_id: str, owner: str, *, lease_seconds: float, now: datetime
    ) -> Claim | None:
        """See `JobQueue`."""
        with transaction(self._engine, writes=True) as connection:
            row = connection.execute(_abandoned(owner).where(jobs.c.job_id == job_id)).first()
            return None if row is None else _take(connection, row, owner, lease_seconds, now)

    @repeated
    def renew_leases(
        self, leases: Sequence[Lease], *, lease_seconds: float, waiting: Collection[str] = ()
    ) -> Collection[str]:
        """See `JobQueue`."""
        if not leases:
            return []
        with transaction(self._engine, writes=True, in_one_statement=True) as connection:
            held = as_table(
                connection.dialect.name,
                literal(
                    [
                        {
                            "job_id": lease.job_id,
                            "token": lease.token,
                            "only_waits": lease.job_id in waiting,
                        }
                        for lease in leases
                    ],
                    JSON(),
                ),
                [job_leases.c.job_id, job_leases.c.token, job_leases.c.only_waits],
            )
            renewed = (
                update(job_leases)
                .where(
                    job_leases.c.job_id == held.c.job_id,
                    job_leases.c.token == held.c.token,
                    job_leases.c.expire_time.is_not(None),
                )
                .values(expire_time=seconds_from_now(lease_seconds), only_waits=held.c.only_waits)
                .returning(job_leases.c.job_id)
            )
            return connection.execute(renewed).scalars().all()

    def cancel_requests(self, owner: str) -> Collection[str]:
        """See `JobQueue`."""
        query = select(job_leases.c.job_id).where(
            job_leases.c.owner == owner,
            job_leases.c.cancel_requested,
            job_leases.c.expire_time.is_not(None),
        )
        with transaction(self._engine, writes=False) as connection:
            return connection.execute(query).scalars().all()

    @repeated
    def request_cancel(self, project: str, job_id: str) -> Job:
        """See `JobQueue`. A job that is final already is returned as it is."""
        with transaction(self._engine, writes=True) as connection:
            job = job_from(find_job(connection, project, job_id, lock=True))
            if job.state.is_final:
                return job
            wish = {
                "job_id": job_id,
                "token": 0,
                "owner": "",
                "cancel_requested": True,
                "losses": [],
            }
            connection.execute(
                upsert(connection.dialect.name, job_leases, wish, replaced=("cancel_requested",))
            )
        return job

    @repeated
    def end_leases(self) -> None:
        """See `JobQueue`."""
        with transaction(self._engine, writes=True) as connection:
            connection.execute(
                update(job_leases)
                .where(job_leases.c.expire_time.is_not(None))
                .values(expire_time=seconds_from_now(-1.0))
            )


def _abandoned(owner: str, passed_over: Collection[str] = ()) -> Select[Any]:
    """Return the query of running jobs whose lease ran out, the longest ago first."""
    return (
        select(jobs)
        .join(job_leases, job_leases.c.job_id == jobs.c.job_id)
        .where(
            job_leases.c.expire_time < seconds_from_now(0.0),
            job_leases.c.owner != owner,
            jobs.c.state == _RUNNING,
            *_not_among(passed_over),
        )
        .order_by(job_leases.c.expire_time)
        .limit(1)
        # both rows: after a wait only locked ones are read again, and the lease may have been renewed
        .with_for_update(skip_locked=True, of=[jobs, job_leases])
    )


def _not_among(passed_over: Collection[str]) -> Sequence[ColumnElement[bool]]:
    return [jobs.c.job_id.not_in(sorted(passed_over))] if passed_over else []


def _next_queued(
    connection: Connection, quota: Quota, passed_over: Collection[str]
) -> Row[Any] | None:
    """Lock and return the next job of the queue."""
    for project, limit in connection.execute(projects_in_turn(quota)).all():
        row = connection.execute(first_queued(project, passed_over)).first()
        if row is not None and _has_room(connection, project, limit):
            return row
    return None


def first_queued(project: str, passed_over: Collection[str] = ()) -> Select[Any]:
    """Return the query of a project's first job in the queue that nobody else is taking."""
    return (
        select(jobs)
        .where(jobs.c.state == _QUEUED, jobs.c.project == project, *_not_among(passed_over))
        .order_by(jobs.c.queue_rank, jobs.c.create_time, jobs.c.job_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def projects_in_turn(quota: Quota) -> Select[str, int]:
    """Return the query of the projects with queued jobs that may run one more, whose turn it is first.

    Projects are found by jumping from one to the next in the index, not by reading all queued jobs;
    the cost of a claim so depends on the number of projects and of running jobs, not on that of queued
    ones. Columns: the project, and how many jobs it may run at a time (0 for any number).
    """
    # an alias each: the database must not take the inner table for the outer one
    first, later, heads, counted = (jobs.alias() for _ in range(4))
    found = (
        select(func.min(first.c.project).label("project"))
        .where(first.c.state == _QUEUED)
        .cte("queues", recursive=True)
    )
    following: ScalarSelect[Any] = (
        select(func.min(later.c.project))
        .where(later.c.state == _QUEUED, later.c.project > found.c.project)
        .correlate(found)
        .scalar_subquery()
    )
    queues = found.union_all(select(following).where(found.c.project.is_not(None)))
    head_id = (
        select(heads.c.job_id)
        .where(heads.c.state == _QUEUED, heads.c.project == queues.c.project)
        .order_by(heads.c.queue_rank, heads.c.create_time, heads.c.job_id)
        .limit(1)
        .correlate(queues)
        .scalar_subquery()
    )
    running = (
        select(func.count())
        .select_from(counted)
        .where(counted.c.state == _RUNNING, counted.c.project == queues.c.project)
        .correlate(queues)
        .scalar_subquery()
    )
    limit = func.coalesce(project_quotas.c.running_jobs, quota.running_jobs)
    turns = (
        select(
            queues.c.project,
            running.label("running"),
            head_id.label("head_id"),
            limit.label("limit"),
        )
        .outerjoin(project_quotas, project_quotas.c.project == queues.c.project)
        .where(queues.c.project.is_not(None))
        .subquery("turns")
    )
    head = jobs.alias("head")
    return (
        select(turns.c.project, turns.c.limit)
        .join(head, head.c.job_id == turns.c.head_id)
        .where((turns.c.limit == 0) | (turns.c.running < turns.c.limit))
        .order_by(turns.c.running, head.c.queue_rank, head.c.create_time, head.c.job_id)
    )


def _has_room(connection: Connection, project: str, limit: int) -> bool:
    """Whether the project may run one more job, counted while no other claim of it can be under way."""
    if not limit:
        return True
    lock_project(connection, project)
    running = connection.execute(
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.state == _RUNNING, jobs.c.project == project)
    ).scalar_one()
    return bool(running < limit)


def _take(
    connection: Connection, row: Row[Any], owner: str, lease_seconds: float, now: datetime
) -> Claim:
    """Give a locked job to the owner.

    Raises:
        UnreadableRecordError: It is damaged, or of another version; nothing is written then.
    """
    before = job_from(row)
    losses = _lost_lives(connection, row) if before.state is JobState.RUNNING else ()
    job = replace(
        before,
        state=JobState.RUNNING,
        start_time=before.start_time or now,
        update_time=now,
        revision=before.revision + 1,
    )
    dialect = connection.dialect.name
    lease = upsert(
        dialect,
        job_leases,
        {
            "job_id": row.job_id,
            "token": 1,
            "owner": owner,
            "claim_time": seconds_from_now(0.0),
            "expire_time": seconds_from_now(lease_seconds),
            "only_waits": False,
            "losses": to_plain([loss for loss in losses if not loss.only_waited]),
        },
        # a job out of the queue keeps what its earlier lives left
        replaced=(
            "owner",
            "claim_time",
            "expire_time",
            "only_waits",
            *(["losses"] if losses else []),
        ),
        changes={"token": job_leases.c.token + 1},
    ).returning(job_leases.c.job_id, job_leases.c.token, job_leases.c.cancel_requested)

    def hold(found: FromClause) -> Sequence[Update]:
        token = select(found.c.token).scalar_subquery()
        return [
            update(jobs)
            .where(jobs.c.job_id.in_(select(found.c.job_id)))
            .values(**job_columns(job), holder_token=token)
        ]

    taken = make_chain(dialect, lease, hold).run(connection, {})
    assert taken is not None
    return Claim(
        job=job,
        lease=Lease(job_id=job.job_id, owner=owner, token=taken.token),
        before=before,
        losses=losses,
        cancel_requested=taken.cancel_requested,
    )


def _lost_lives(connection: Connection, row: Row[Any]) -> tuple[LostLife, ...]:
    """Return the lives of a running job that ended without an orderly stop, the last one among them."""
    held = connection.execute(select(job_leases).filter_by(job_id=row.job_id)).one()
    life = LostLife(
        owner=held.owner,
        since=held.claim_time or held.expire_time,
        last_heard=held.expire_time,
        unit=_running_unit(connection, row),
        only_waited=held.only_waits,
    )
    earlier = read_document(
        tuple[LostLife, ...],
        held.losses,
        of=f"the earlier lives of job {row.job_id}",
        remedy="delete the job and create it anew",
    )
    # only lives that end at the same unit of work speak against the job
    return (*(loss for loss in earlier if loss.unit == life.unit), life)


def _running_unit(connection: Connection, row: Row[Any]) -> str:
    """Return what was running when the job was last heard of: its last trial, or its stage."""
    trial = connection.execute(
        select(trials.c.trial_index, trials.c.document)
        .where(trials.c.job_id == row.job_id)
        .order_by(trials.c.trial_index.desc())
        .limit(1)
    ).first()
    if trial is not None and document_value(trial.document, "state") == TrialState.RUNNING:
        return f"trial {trial.trial_index}"
    event = connection.execute(
        select(job_events.c.document)
        .where(job_events.c.job_id == row.job_id)
        .order_by(job_events.c.sequence.desc())
        .limit(1)
    ).scalar()
    stage = document_value(event, "stage")
    done = f" after trial {trial.trial_index}" if trial is not None else ""
    return f"stage {stage or 'start'}{done}"
