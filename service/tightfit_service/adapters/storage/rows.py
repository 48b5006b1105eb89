"""Rows of the record store: found, locked, inserted, and turned into values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, func, insert, select, text

from tightfit_service.adapters.storage.database import POSTGRESQL
from tightfit_service.adapters.storage.documents import DamagedDocument, read_document
from tightfit_service.adapters.storage.schema import assets, jobs
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import AssetRecord, UnreadableJob
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    UnreadableRecordError,
)
from tightfit_service.domain.job import Job, JobState


def same_request(earlier: Job, job: Job) -> Job:
    """Return the earlier job if it was asked for in the same words.

    Raises:
        AlreadyExistsError: Its specification differs.
    """
    if to_plain(earlier.spec) != to_plain(job.spec):
        raise AlreadyExistsError(
            f"request_id {job.request_id!r} was used for a different job",
            field="request_id",
            remedy="use a new request_id for a new request",
        )
    return earlier


JOB_COLUMNS = tuple(
    one.name for one in jobs.columns if one.name not in ("last_sequence", "holder_token")
)
"""What `job_columns` gives the values of."""


def job_columns(job: Job) -> dict[str, Any]:
    """Return the columns of a job, `last_sequence` and `holder_token` aside."""
    return {
        "job_id": job.job_id,
        "project": job.project,
        "state": job.state.value,
        "create_time": job.create_time,
        "request_id": job.request_id or None,
        "revision": job.revision,
        "model_digest": job.spec.model_digest,
        "dataset_digest": job.spec.dataset_digest,
        "queue_rank": -job.spec.priority,
        "document": to_plain(job),
    }


def find_job(connection: Connection, project: str, job_id: str, *, lock: bool = False) -> Row[Any]:
    """Return the row of a job, locked until the transaction ends if so wished.

    Raises:
        NotFoundError: No such job in the project.
    """
    query = select(jobs).where(jobs.c.project == project, jobs.c.job_id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise no_job(job_id)
    return row


def job_from(row: Row[Any]) -> Job:
    """Return the job of a row.

    Raises:
        UnreadableRecordError: It is damaged, or of another version.
    """
    return read_document(
        Job,
        row.document,
        of=f"job {row.job_id}",
        remedy=f"`tightfit jobs delete {row.job_id}` removes it; the version of tightfit that wrote it "
        "may still read it",
    )


def listed_job_from(row: Row[Any]) -> Job | UnreadableJob:
    """Return the job of a row, or what is known of it all the same."""
    try:
        return job_from(row)
    except UnreadableRecordError as error:
        return UnreadableJob(
            job_id=row.job_id,
            project=row.project,
            state=JobState(row.state),
            create_time=row.create_time,
            revision=row.revision,
            error=error,
        )


def lock_project(connection: Connection, project: str) -> None:
    """Let one transaction at a time count the project's jobs and add one; SQLite does so by itself."""
    if connection.dialect.name == POSTGRESQL:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:project, 0))"),
            {"project": project},
        )


def count_queued(connection: Connection, project: str) -> int:
    """Return how many jobs of the project wait in the queue."""
    query = (
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.state == JobState.QUEUED.value, jobs.c.project == project)
    )
    return int(connection.execute(query).scalar_one())


def insert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, of which there may be none."""
    if rows:
        connection.execute(insert(table), rows)


def find_asset(connection: Connection, project: str, kind: str, asset_id: str) -> Row[Any] | None:
    """Return the row of an asset, or None."""
    query = select(assets).filter_by(project=project, kind=kind, asset_id=asset_id)
    return connection.execute(query).first()


def asset_from(row: Row[Any]) -> AssetRecord:
    """Return the record of a row; the bytes of an asset can be used without its description."""
    description = row.description
    if isinstance(description, DamagedDocument):
        description = {"unreadable": description.reason}
    return AssetRecord(
        asset_id=row.asset_id,
        project=row.project,
        kind=row.kind,
        digest=row.digest,
        size_bytes=row.size_bytes,
        display_name=row.display_name,
        create_time=row.create_time,
        description=description,
    )


def trial_index_after(after: str) -> int:
    """Return the index that a page of trials starts after.

    Raises:
        InvalidRequestError: `after` is not an index.
    """
    if not after:
        return -1
    try:
        return int(after)
    except ValueError as error:
        raise InvalidRequestError(
            f"{after!r} is not the index of a trial",
            field="page_token",
            remedy="pass the page token on as it was received",
        ) from error


def no_job(job_id: str) -> NotFoundError:
    """Return the error for a job that is not there."""
    return NotFoundError(
        f"there is no job {job_id}",
        field="name",
        remedy="`tightfit jobs list` shows those of the project",
    )


def no_asset(kind: str, asset_id: str) -> NotFoundError:
    """Return the error for an asset that is not there."""
    return NotFoundError(
        f"there is no {kind} {asset_id}",
        field="name",
        remedy=f"`tightfit {kind}s list` shows those of the project",
    )
