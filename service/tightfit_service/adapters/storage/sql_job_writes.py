"""What whoever runs a job writes of it: fenced by the lease, in one statement where the database has them.

The fence is the column `holder_token` of the job's own row. A condition on another table would not do:
PostgreSQL looks again only at the row that it waited for, and would let a writer pass whose lease somebody
took in the meantime.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
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
    Integer,
    String,
    Text,
    Update,
    bindparam,
    delete,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.rows import JOB_COLUMNS, job_columns, no_job
from tightfit_service.adapters.storage.schema import (
    job_events,
    job_leases,
    jobs,
    trial_artifacts,
    trials,
)
from tightfit_service.adapters.storage.sql_chain import (
    Chain,
    as_table,
    make_chain,
    upsert_rows,
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
    parameters = {
        **{f"p_{name}": value for name, value in job_columns(changed).items()},
        **_fence(job.job_id, lease),
        "p_before": before,
        "p_earlier": job.revision,
    }
    with transaction(engine, writes=True, in_one_statement=True) as connection:
        change = _job_change(connection.dialect.name, is_given_back=is_given_back)
        if change.run(connection, parameters) is None:
            _check_change(_check_writer(connection, job.job_id, lease, job.project), job)
            raise _overtaken(job.job_id)
    return changed


def save_trial(
    engine: Engine, job_id: str, trial: Trial, event: JobEvent | None, lease: Lease | None
) -> None:
    """Store a trial, and the event that tells of it; see `JobStore`."""
    parameters = {
        **({} if event is None else {"p_event": _without_number(event)}),
        "p_index": trial.index,
        "p_input_digest": trial.input_digest,
        "p_trial": to_plain(trial),
        "p_artifacts": [
            {"artifact_name": name, "digest": digest} for name, digest in trial.artifacts.items()
        ],
    }
    with transaction(engine, writes=True, in_one_statement=True) as connection:
        told = _news(connection.dialect.name, has_event=event is not None, has_trial=True)
        _run(connection, told, job_id, lease, parameters)


def append_event(engine: Engine, event: JobEvent, lease: Lease | None) -> JobEvent:
    """Store an event under the job's next number; see `JobStore`."""
    with transaction(engine, writes=True, in_one_statement=True) as connection:
        told = _news(connection.dialect.name, has_event=True, has_trial=False)
        parameters = {"p_event": _without_number(event)}
        return replace(event, sequence=_run(connection, told, event.job_id, lease, parameters))


def _run(
    connection: Connection,
    news: Chain,
    job_id: str,
    lease: Lease | None,
    parameters: Mapping[str, Any],
) -> int:
    """Write news of a job, and return its last sequence number.

    Raises:
        NotFoundError, LeaseLostError: See `JobStore`.
    """
    row = news.run(connection, {**parameters, **_fence(job_id, lease)})
    if row is None:
        _check_writer(connection, job_id, lease)
        raise _overtaken(job_id)
    return int(row.last_sequence)


def _without_number(event: JobEvent) -> str:
    """Return the JSON of an event as `numbered_document` wants it."""
    plain: dict[str, Any] = to_plain(event)
    return json.dumps({key: plain[key] for key in plain if key != "sequence"})[:-1]


# Statements are made once for each database: to put one together takes longer than to have it carried out.


@functools.cache
def _job_change(dialect: str, *, is_given_back: bool) -> Chain:
    """Return the change of a job whose revision, state and holder are those that the writer knows."""
    changed = (
        update(jobs)
        .where(
            jobs.c.project == bindparam("p_project"),
            jobs.c.revision == bindparam("p_earlier"),
            jobs.c.state.in_(bindparam("p_before", expanding=True)),
            *_is_held(),
        )
        .values({name: bindparam(f"p_{name}", type_=jobs.c[name].type) for name in JOB_COLUMNS})
        .returning(jobs.c.job_id)
    )
    if not is_given_back:
        return Chain(statements=(changed,))

    def give_back(found: FromClause) -> Sequence[Update]:
        return [
            update(job_leases)
            .where(job_leases.c.job_id.in_(select(found.c.job_id)))
            .values(expire_time=None)
        ]

    return make_chain(dialect, changed.values(holder_token=None), give_back)


@functools.cache
def _news(dialect: str, *, has_event: bool, has_trial: bool) -> Chain:
    """Return the write of an event, a trial, or both, which begins by holding the row of their job."""
    # the row is locked by the update, so numbers come out in order and without gaps
    numbered = (
        update(jobs)
        .where(*_is_held())
        .values(last_sequence=jobs.c.last_sequence + int(has_event))
        .returning(jobs.c.job_id, jobs.c.last_sequence)
    )

    def follow(found: FromClause) -> Sequence[Insert | Delete]:
        told = [_event_insert(found)] if has_event else []
        return [*told, *(_trial_writes(dialect, found) if has_trial else [])]

    return make_chain(dialect, numbered, follow)


def _event_insert(found: FromClause) -> Insert:
    number = found.c.last_sequence
    document = numbered_document(bindparam("p_event", type_=Text()), number)
    return insert(job_events).from_select(
        ["job_id", "sequence", "document"], select(found.c.job_id, number, document)
    )


def _trial_writes(dialect: str, found: FromClause) -> Sequence[Insert | Delete]:
    index = bindparam("p_index", type_=Integer()).label("trial_index")
    saved = upsert_rows(
        dialect,
        trials,
        select(
            found.c.job_id,
            index,
            bindparam("p_input_digest", type_=String()).label("input_digest"),
            bindparam("p_trial", type_=JSON()).label("document"),
        ),
    )
    named = as_table(
        dialect,
        bindparam("p_artifacts", type_=JSON()),
        [trial_artifacts.c.artifact_name, trial_artifacts.c.digest],
    )
    outdated = delete(trial_artifacts).where(
        trial_artifacts.c.job_id.in_(select(found.c.job_id)),
        trial_artifacts.c.trial_index == bindparam("p_index"),
        trial_artifacts.c.artifact_name.not_in(select(named.c.artifact_name)),
    )
    kept = upsert_rows(
        dialect,
        trial_artifacts,
        select(found.c.job_id, index, named.c.artifact_name, named.c.digest).select_from(
            found.join(named, true())
        ),
    )
    return [saved, outdated, kept]


def _is_held() -> Sequence[ColumnElement[bool]]:
    """Return the conditions that the writer holds the job; without a lease, that nobody does.

    A lease that ran out and was taken by nobody still holds: the database's clock may have jumped.
    """
    token = bindparam("p_token", type_=Integer())
    return jobs.c.job_id == bindparam("p_held"), jobs.c.holder_token.is_not_distinct_from(token)


def _fence(job_id: str, lease: Lease | None) -> Mapping[str, Any]:
    return {"p_held": job_id, "p_token": None if lease is None else lease.token}


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
