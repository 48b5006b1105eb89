"""What whoever runs a job writes of it: fenced by the lease, in one statement where the database has them.

The fence is the column `holder_token` of the job's own row. A condition on another table would not do:
PostgreSQL looks again only at the row that it waited for, and would let a writer pass whose lease somebody
took in the meantime.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Delete,
    Engine,
    FromClause,
    Insert,
    Update,
    delete,
    insert,
    literal,
    select,
    true,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.rows import job_columns, no_job
from tightfit_service.adapters.storage.schema import (
    job_events,
    job_leases,
    jobs,
    trial_artifacts,
    trials,
)
from tightfit_service.adapters.storage.sql_chain import (
    Follow,
    as_table,
    upsert_rows,
    write_chain,
)
from tightfit_service.adapters.storage.sql_errors import ConflictError
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import Lease
from tightfit_service.domain.errors import LeaseLostError, PreconditionError
from tightfit_service.domain.job import (
    Job,
    JobEvent,
    JobState,
    check_transition,
    states_before,
)
from tightfit_service.domain.trial import Trial


class _Stored(NamedTuple):
    """What decides whether a change of a job is allowed."""

    state: JobState
    revision: int


def update_job(engine: Engine, job: Job, lease: Lease | None) -> Job:
    """Store a changed job; see `JobStore`."""
    changed = replace(job, revision=job.revision + 1)
    is_given_back = lease is not None and changed.state is not JobState.RUNNING
    before = [state.value for state in (job.state, *states_before(job.state))]
    statement = (
        update(jobs)
        .where(
            jobs.c.job_id == job.job_id,
            jobs.c.project == job.project,
            jobs.c.revision == job.revision,
            jobs.c.state.in_(before),
            _is_held_by(lease),
        )
        .values(**job_columns(changed), **({"holder_token": None} if is_given_back else {}))
        .returning(jobs.c.job_id)
    )

    def give_back(found: FromClause) -> Sequence[Update]:
        return [
            update(job_leases)
            .where(job_leases.c.job_id.in_(select(found.c.job_id)))
            .values(expire_time=None)
        ]

    with transaction(engine, writes=True, in_one_statement=True) as connection:
        if is_given_back:
            row = write_chain(connection, statement, give_back)
        else:
            row = connection.execute(statement).first()
        if row is None:
            _check_change(_check_writer(connection, job.job_id, lease, job.project), job)
            raise _overtaken(job.job_id)
    return changed


def save_trial(
    engine: Engine, job_id: str, trial: Trial, event: JobEvent | None, lease: Lease | None
) -> None:
    """Store a trial, and the event that tells of it; see `JobStore`."""
    with transaction(engine, writes=True, in_one_statement=True) as connection:

        def follow(found: FromClause) -> Sequence[Insert | Delete]:
            told = [] if event is None else [_event_insert(event, found)]
            return [*told, *_trial_writes(connection, trial, found)]

        _write_numbered(connection, job_id, lease, follow, number=0 if event is None else 1)


def append_event(engine: Engine, event: JobEvent, lease: Lease | None) -> JobEvent:
    """Store an event under the job's next number; see `JobStore`."""
    with transaction(engine, writes=True, in_one_statement=True) as connection:
        sequence = _write_numbered(
            connection, event.job_id, lease, lambda found: [_event_insert(event, found)], number=1
        )
    return replace(event, sequence=sequence)


def _write_numbered(
    connection: Connection, job_id: str, lease: Lease | None, follow: Follow, *, number: int
) -> int:
    """Raise the job's last sequence number, which holds its row, and write what follows; return it.

    Raises:
        NotFoundError, LeaseLostError: See `JobStore`.
    """
    # the row is locked by the update, so numbers come out in order and without gaps
    numbered = (
        update(jobs)
        .where(jobs.c.job_id == job_id, _is_held_by(lease))
        .values(last_sequence=jobs.c.last_sequence + number)
        .returning(jobs.c.job_id, jobs.c.last_sequence)
    )
    row = write_chain(connection, numbered, follow)
    if row is None:
        _check_writer(connection, job_id, lease)
        raise _overtaken(job_id)
    return int(row.last_sequence)


def _event_insert(event: JobEvent, found: FromClause) -> Insert:
    plain: dict[str, Any] = to_plain(event)
    document = numbered_document(
        literal(json.dumps({key: plain[key] for key in plain if key != "sequence"})[:-1]),
        found.c.last_sequence,
    )
    return insert(job_events).from_select(
        ["job_id", "sequence", "document"],
        select(found.c.job_id, found.c.last_sequence, document),
    )


def _trial_writes(
    connection: Connection, trial: Trial, found: FromClause
) -> Sequence[Insert | Delete]:
    index = literal(trial.index).label("trial_index")
    saved = upsert_rows(
        connection,
        trials,
        select(
            found.c.job_id,
            index,
            literal(trial.input_digest).label("input_digest"),
            literal(to_plain(trial), JSON()).label("document"),
        ),
    )
    outdated = delete(trial_artifacts).where(
        trial_artifacts.c.job_id.in_(select(found.c.job_id)),
        trial_artifacts.c.trial_index == trial.index,
        trial_artifacts.c.artifact_name.not_in([*trial.artifacts]),
    )
    if not trial.artifacts:
        return [saved, outdated]
    named = as_table(
        connection,
        [{"artifact_name": name, "digest": digest} for name, digest in trial.artifacts.items()],
        [trial_artifacts.c.artifact_name, trial_artifacts.c.digest],
    )
    kept = upsert_rows(
        connection,
        trial_artifacts,
        select(found.c.job_id, index, named.c.artifact_name, named.c.digest).select_from(
            found.join(named, true())
        ),
    )
    return [saved, outdated, kept]


def _is_held_by(lease: Lease | None) -> ColumnElement[bool]:
    """Whether the writer holds the job; without a lease, whether nobody does.

    A lease that ran out and was taken by nobody still holds: the database's clock may have jumped.
    """
    return jobs.c.holder_token.is_(None) if lease is None else jobs.c.holder_token == lease.token


def _check_writer(
    connection: Connection, job_id: str, lease: Lease | None, project: str | None = None
) -> _Stored:
    """Say why a write found no row: return what the job is where the writer holds it.

    Raises:
        NotFoundError: No such job.
        LeaseLostError: Somebody else holds the job, or the writer does not any more.
    """
    row = connection.execute(
        select(
            jobs.c.project, jobs.c.state, jobs.c.revision, jobs.c.holder_token, job_leases.c.owner
        )
        .outerjoin_from(jobs, job_leases, job_leases.c.job_id == jobs.c.job_id)
        .where(jobs.c.job_id == job_id)
    ).first()
    if row is None or project not in (None, row.project):
        raise no_job(job_id)
    if row.holder_token != (None if lease is None else lease.token):
        holder = "nobody" if row.holder_token is None else row.owner
        raise LeaseLostError(
            f"job {job_id} is held by {holder}", field="name", remedy="leave it to whoever holds it"
        )
    return _Stored(JobState(row.state), row.revision)


def _check_change(stored: _Stored, job: Job) -> None:
    if stored.revision != job.revision:
        raise PreconditionError(
            f"job {job.job_id} is at revision {stored.revision}, not {job.revision}",
            field="revision",
            remedy="read the job again and repeat the change",
        )
    if stored.state is not job.state:
        check_transition(stored.state, job.state)


def _overtaken(job_id: str) -> ConflictError:
    """Return the error for a job that changed between a write and the look at why it found nothing."""
    return ConflictError(f"job {job_id} changed meanwhile", remedy="try again in a moment")


class numbered_document(FunctionElement[Any]):  # noqa: N801  # reads as the SQL function it is
    """The document of an event: JSON without its last brace, and the number that the database gave."""

    inherit_cache = True
    type = JSON()


def _with_number(element: numbered_document, compiler: SQLCompiler, **options: Any) -> str:
    beginning, number = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{beginning} || ', \"sequence\": ' || {number} || '}}'"


@compiles(numbered_document, "postgresql")
def _in_postgresql(element: numbered_document, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST({_with_number(element, compiler, **options)} AS JSON)"


@compiles(numbered_document, "sqlite")
def _in_sqlite(element: numbered_document, compiler: SQLCompiler, **options: Any) -> str:
    return f"({_with_number(element, compiler, **options)})"
