"""Jobs, trials, events, cached results and assets in a SQL database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    delete,
    exists,
    insert,
    or_,
    select,
    tuple_,
)

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.documents import read_document
from tightfit_service.adapters.storage.rows import (
    asset_from,
    count_queued,
    find_asset,
    find_job,
    insert_all,
    job_columns,
    job_from,
    listed_job_from,
    lock_project,
    no_asset,
    same_request,
    trial_index_after,
)
from tightfit_service.adapters.storage.schema import (
    assets,
    job_events,
    job_leases,
    job_teachers,
    jobs,
    trial_artifacts,
    trials,
    work_outputs,
    work_results,
)
from tightfit_service.adapters.storage.sql_deaths import add_death
from tightfit_service.adapters.storage.sql_errors import repeated
from tightfit_service.adapters.storage.sql_job_writes import (
    append_event,
    save_trial,
    update_job,
)
from tightfit_service.adapters.storage.sql_results import find_result, find_unit, keep_result
from tightfit_service.adapters.storage.sql_time import seconds_from_now
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    AssetRecord,
    JobMark,
    Lease,
    Page,
    UnitDeaths,
    UnitRecord,
    UnreadableJob,
    WorkResult,
)
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    PreconditionError,
)
from tightfit_service.domain.job import Job, JobEvent, JobState
from tightfit_service.domain.quota import Quota, check_queued_jobs
from tightfit_service.domain.trial import Trial

_RUN_AGAIN = "delete the job and create it anew: what was computed before is remembered"

_UNFINISHED = [state.value for state in JobState if not state.is_final]


class SqlStore:
    """Implements `JobStore` and `AssetStore` on any database that SQLAlchemy knows.

    The schema must be up to date (`database.upgrade`). Safe for many threads and processes; every
    method is one transaction and may raise, besides what the ports say:

    Raises:
        UnavailableError: The database cannot be reached or is locked for too long.
        ResourceExhaustedError: The database has no room left.
    """

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @repeated
    def create_job(self, job: Job, *, quota: Quota | None = None) -> Job:
        """See `JobStore`. Two racing calls with one request_id get the same job."""
        with transaction(self._engine, writes=True) as connection:
            if job.request_id:
                earlier = connection.execute(
                    select(jobs).where(
                        jobs.c.project == job.project, jobs.c.request_id == job.request_id
                    )
                ).first()
                if earlier is not None:
                    return same_request(job_from(earlier), job)
            if connection.execute(select(jobs.c.job_id).filter_by(job_id=job.job_id)).first():
                raise AlreadyExistsError(f"there is a job {job.job_id} already", field="job_id")
            if quota is not None and quota.queued_jobs:
                lock_project(connection, job.project)
                check_queued_jobs(quota, count_queued(connection, job.project))
            connection.execute(insert(jobs).values(last_sequence=0, **job_columns(job)))
            insert_all(
                connection,
                job_teachers,
                [
                    {"job_id": job.job_id, "digest": digest}
                    for digest in sorted({teacher.digest for teacher in job.spec.teachers})
                ],
            )
        return job

    def get_job(self, project: str, job_id: str) -> Job:
        """See `JobStore`."""
        with transaction(self._engine, writes=False) as connection:
            return job_from(find_job(connection, project, job_id))

    def list_jobs(
        self, project: str, page: Page, *, states: Sequence[JobState] = ()
    ) -> Sequence[Job | UnreadableJob]:
        """See `JobStore`. A `page.after` that no longer exists is a NotFoundError."""
        query = (
            select(jobs)
            .where(jobs.c.project == project)
            .order_by(jobs.c.create_time.desc(), jobs.c.job_id.desc())
            .limit(page.size)
        )
        if states:
            query = query.where(jobs.c.state.in_([state.value for state in states]))
        with transaction(self._engine, writes=False) as connection:
            if page.after:
                last = find_job(connection, project, page.after)
                query = query.where(
                    tuple_(jobs.c.create_time, jobs.c.job_id)
                    < tuple_(last.create_time, last.job_id)
                )
            rows = connection.execute(query).all()
        return [listed_job_from(row) for row in rows]

    @repeated
    def update_job(self, job: Job, *, lease: Lease | None = None) -> Job:
        """See `JobStore`."""
        return update_job(self._engine, job, lease)

    @repeated
    def delete_job(self, project: str, job_id: str) -> None:
        """See `JobStore`. Cached results that no other job's trial stands for go as well."""
        with transaction(self._engine, writes=True) as connection:
            stored = find_job(connection, project, job_id, lock=True)
            if not JobState(stored.state).is_final and not _is_stranded(connection, stored):
                raise PreconditionError(
                    f"job {job_id} is {stored.state}",
                    field="name",
                    remedy="cancel it first, or wait for its end",
                )
            own = select(trials.c.input_digest).where(trials.c.job_id == job_id)
            # asked for each of the few results: all other trials of a project may be very many
            other, its_job = trials.alias("other"), jobs.alias("its_job")
            is_used = exists().where(
                other.c.input_digest == work_results.c.input_digest,
                other.c.job_id != job_id,
                its_job.c.job_id == other.c.job_id,
                its_job.c.project == project,
            )
            connection.execute(
                delete(work_results).where(
                    work_results.c.project == project,
                    work_results.c.input_digest.in_(own),
                    ~is_used,
                )
            )
            connection.execute(delete(jobs).where(jobs.c.job_id == job_id))

    def job_marks(self, job_ids: Sequence[str]) -> Mapping[str, JobMark]:
        """See `JobStore`."""
        query = select(jobs.c.job_id, jobs.c.revision, jobs.c.last_sequence).where(
            jobs.c.job_id.in_(job_ids)
        )
        with transaction(self._engine, writes=False) as connection:
            rows = connection.execute(query).all()
        return {row.job_id: JobMark(row.revision, row.last_sequence) for row in rows}

    @repeated
    def save_trial(
        self,
        job_id: str,
        trial: Trial,
        *,
        event: JobEvent | None = None,
        lease: Lease | None = None,
    ) -> None:
        """See `JobStore`. Raises NotFoundError for an unknown job."""
        save_trial(self._engine, job_id, trial, event, lease)

    def list_trials(self, job_id: str, page: Page | None = None) -> Sequence[Trial]:
        """See `JobStore`. An unknown job has no trials."""
        query = (
            select(trials.c.document)
            .where(trials.c.job_id == job_id)
            .order_by(trials.c.trial_index)
        )
        if page is not None:
            query = query.where(trials.c.trial_index > trial_index_after(page.after)).limit(
                page.size
            )
        with transaction(self._engine, writes=False) as connection:
            documents = connection.execute(query).scalars().all()
        return [
            read_document(Trial, document, of=f"a trial of job {job_id}", remedy=_RUN_AGAIN)
            for document in documents
        ]

    @repeated
    def append_event(self, event: JobEvent, *, lease: Lease | None = None) -> JobEvent:
        """See `JobStore`. Raises NotFoundError for an unknown job."""
        return append_event(self._engine, event, lease)

    def list_events(self, job_id: str, *, after: int, limit: int) -> Sequence[JobEvent]:
        """See `JobStore`. An unknown job has no events."""
        query = (
            select(job_events.c.document)
            .where(job_events.c.job_id == job_id, job_events.c.sequence > after)
            .order_by(job_events.c.sequence)
            .limit(limit)
        )
        with transaction(self._engine, writes=False) as connection:
            documents = connection.execute(query).scalars().all()
        return [
            read_document(JobEvent, document, of=f"an event of job {job_id}", remedy=_RUN_AGAIN)
            for document in documents
        ]

    def cached_result(self, project: str, input_digest: str) -> WorkResult | None:
        """See `JobStore`. That it is still used is noted once an hour."""
        return find_result(self._engine, project, input_digest)

    @repeated
    def store_result(self, project: str, input_digest: str, result: WorkResult) -> None:
        """See `JobStore`. A result stored before is replaced."""
        keep_result(self._engine, project, input_digest, result)

    def unit_record(self, project: str, input_digest: str, *, within_seconds: float) -> UnitRecord:
        """See `JobStore`. That a result is still used is noted once an hour."""
        return find_unit(self._engine, project, input_digest, within_seconds=within_seconds)

    @repeated
    def add_unit_death(
        self, project: str, input_digest: str, evidence: str, *, within_seconds: float
    ) -> UnitDeaths:
        """See `JobStore`."""
        return add_death(
            self._engine, project, input_digest, evidence, within_seconds=within_seconds
        )

    @repeated
    def add_asset(self, record: AssetRecord) -> AssetRecord:
        """See `AssetStore`."""
        key = (record.project, record.kind, record.asset_id)
        with transaction(self._engine, writes=True) as connection:
            row = find_asset(connection, *key)
            if row is None:
                connection.execute(
                    insert(assets).values(
                        project=record.project,
                        kind=record.kind,
                        asset_id=record.asset_id,
                        digest=record.digest,
                        size_bytes=record.size_bytes,
                        display_name=record.display_name,
                        create_time=record.create_time,
                        description=to_plain(record.description),
                    )
                )
                return record
        stored = asset_from(row)
        if stored.digest != record.digest:
            raise AlreadyExistsError(
                f"{record.kind} {record.asset_id} exists with other contents",
                field=f"{record.kind}_id",
                remedy="choose another id, or delete the old one first",
            )
        return stored

    def get_asset(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        """See `AssetStore`."""
        with transaction(self._engine, writes=False) as connection:
            row = find_asset(connection, project, kind, asset_id)
        if row is None:
            raise no_asset(kind, asset_id)
        return asset_from(row)

    def list_assets(self, project: str, kind: str, page: Page) -> Sequence[AssetRecord]:
        """See `AssetStore`."""
        query = (
            select(assets)
            .where(
                assets.c.project == project,
                assets.c.kind == kind,
                assets.c.asset_id > page.after,
            )
            .order_by(assets.c.asset_id)
            .limit(page.size)
        )
        with transaction(self._engine, writes=False) as connection:
            rows = connection.execute(query).all()
        return [asset_from(row) for row in rows]

    @repeated
    def delete_asset(self, project: str, kind: str, asset_id: str) -> AssetRecord:
        """See `AssetStore`. A job uses an asset when it works on the same bytes in the same project."""
        with transaction(self._engine, writes=True) as connection:
            row = find_asset(connection, project, kind, asset_id)
            if row is None:
                raise no_asset(kind, asset_id)
            user = connection.execute(
                select(jobs.c.job_id).where(
                    jobs.c.project == project,
                    jobs.c.state.in_(_UNFINISHED),
                    or_(jobs.c.model_digest == row.digest, _taught_by(row.digest))
                    if kind == "model"
                    else jobs.c.dataset_digest == row.digest,
                )
            ).scalar()
            if user is not None:
                raise PreconditionError(
                    f"job {user} is not finished and uses {kind} {asset_id}",
                    field="name",
                    remedy="cancel the job or wait for its end",
                )
            connection.execute(
                delete(assets).filter_by(project=project, kind=kind, asset_id=asset_id)
            )
        return asset_from(row)

    def is_digest_used(self, project: str, digest: str) -> bool:
        """See `AssetStore`. Model, dataset and teachers of an unfinished job count as used."""
        query = select(
            or_(
                exists().where(assets.c.project == project, assets.c.digest == digest),
                exists().where(
                    trial_artifacts.c.digest == digest,
                    trial_artifacts.c.job_id == jobs.c.job_id,
                    jobs.c.project == project,
                ),
                exists().where(work_outputs.c.project == project, work_outputs.c.digest == digest),
                exists().where(
                    jobs.c.project == project,
                    jobs.c.state.in_(_UNFINISHED),
                    or_(
                        jobs.c.model_digest == digest,
                        jobs.c.dataset_digest == digest,
                        _taught_by(digest),
                    ),
                ),
            )
        )
        with transaction(self._engine, writes=False) as connection:
            return bool(connection.execute(query).scalar())


def _is_stranded(connection: Connection, stored: Row[Any]) -> bool:
    """Whether a job cannot be read here, so that nothing ends it, and nobody else runs it."""
    if isinstance(listed_job_from(stored), Job):
        return False
    held = select(job_leases.c.job_id).where(
        job_leases.c.job_id == stored.job_id, job_leases.c.expire_time >= seconds_from_now(0.0)
    )
    return connection.execute(held).first() is None


def _taught_by(digest: str) -> ColumnElement[bool]:
    """Whether a model teaches in a job besides the original."""
    return jobs.c.job_id.in_(select(job_teachers.c.job_id).where(job_teachers.c.digest == digest))
