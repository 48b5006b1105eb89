"""Cached results of work that are found, noted as used, and in the end forgotten."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import (
    JSON,
    ColumnElement,
    Delete,
    Engine,
    Float,
    FromClause,
    Insert,
    Label,
    Row,
    Select,
    String,
    and_,
    bindparam,
    delete,
    exists,
    func,
    select,
    true,
    tuple_,
    update,
)

from tightfit_service.adapters.storage.database import transaction
from tightfit_service.adapters.storage.documents import read_document
from tightfit_service.adapters.storage.schema import (
    jobs,
    trials,
    unit_claims,
    unit_deaths,
    work_outputs,
    work_results,
)
from tightfit_service.adapters.storage.sql_chain import (
    Chain,
    as_table,
    make_chain,
    upsert,
    upsert_rows,
)
from tightfit_service.adapters.storage.sql_time import seconds_from_now
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import UnitDeaths, UnitRecord, WorkResult
from tightfit_service.domain.errors import UnreadableRecordError
from tightfit_service.domain.job import JobState

log = structlog.get_logger(__name__)

_UNFINISHED = [state.value for state in JobState if not state.is_final]

_NOTED_EVERY = timedelta(hours=1)
"""How exact the time of the last use is: not every look-up shall write."""


def find_result(engine: Engine, project: str, input_digest: str) -> WorkResult | None:
    """Return a cached result, and note that it was used."""
    query = select(work_results.c.document, _is_noted()).where(_is_of(project, input_digest))
    with transaction(engine, writes=False) as connection:
        row = connection.execute(query).first()
    return None if row is None else _noted(engine, project, input_digest, row)


def find_unit(
    engine: Engine, project: str, input_digest: str, *, within_seconds: float
) -> UnitRecord:
    """Return a cached result, which is noted as used, the deaths of the unit's workers, and who has it run."""
    with transaction(engine, writes=False) as connection:
        row = connection.execute(
            _UNIT,
            {
                "p_project": project,
                "p_input_digest": input_digest,
                "p_within": -within_seconds,
            },
        ).one()
    deaths = UnitDeaths()
    if row.death_count is not None:
        deaths = UnitDeaths(count=row.death_count, evidence=row.evidence)
    result = None
    if row.document is not None:
        result = _noted(engine, project, input_digest, row)
    return UnitRecord(result=result, deaths=deaths, claimant=row.owner or "")


def keep_result(engine: Engine, project: str, input_digest: str, result: WorkResult) -> None:
    """Store a result and what it refers to, in the place of an earlier one."""
    parameters = {
        "p_project": project,
        "p_input_digest": input_digest,
        "p_result": to_plain(result),
        "p_outputs": [
            {"output_name": name, "digest": digest, "size_bytes": result.sizes.get(digest)}
            for name, digest in result.outputs.items()
        ],
    }
    with transaction(engine, writes=True, in_one_statement=True) as connection:
        _result_writes(connection.dialect.name).run(connection, parameters)


def _unit_query() -> Select[Any]:
    """Return the query of a result, deaths and a claim: one row, whatever of them there is."""
    unit = select(
        bindparam("p_project", type_=String()).label("project"),
        bindparam("p_input_digest", type_=String()).label("input_digest"),
    ).subquery("unit")
    return select(
        work_results.c.document,
        _is_noted(),
        unit_deaths.c.death_count,
        unit_deaths.c.evidence,
        unit_claims.c.owner,
    ).select_from(
        unit.outerjoin(
            work_results,
            and_(
                work_results.c.project == unit.c.project,
                work_results.c.input_digest == unit.c.input_digest,
            ),
        )
        .outerjoin(
            unit_deaths,
            and_(
                unit_deaths.c.project == unit.c.project,
                unit_deaths.c.input_digest == unit.c.input_digest,
                unit_deaths.c.last_time >= seconds_from_now(bindparam("p_within", type_=Float())),
            ),
        )
        .outerjoin(
            unit_claims,
            and_(
                unit_claims.c.project == unit.c.project,
                unit_claims.c.input_digest == unit.c.input_digest,
                unit_claims.c.expire_time >= seconds_from_now(0.0),
            ),
        )
    )


@functools.cache
def _result_writes(dialect: str) -> Chain:
    kept = upsert(
        dialect,
        work_results,
        {
            "project": bindparam("p_project"),
            "input_digest": bindparam("p_input_digest"),
            "document": bindparam("p_result", type_=JSON()),
            "use_time": seconds_from_now(0.0),
        },
        replaced=("document", "use_time"),
    ).returning(work_results.c.project, work_results.c.input_digest)
    named = as_table(
        dialect,
        bindparam("p_outputs", type_=JSON()),
        [work_outputs.c.output_name, work_outputs.c.digest, work_outputs.c.size_bytes],
    )

    def follow(found: FromClause) -> Sequence[Insert | Delete]:
        outdated = delete(work_outputs).where(
            tuple_(work_outputs.c.project, work_outputs.c.input_digest).in_(
                select(found.c.project, found.c.input_digest)
            ),
            work_outputs.c.output_name.not_in(select(named.c.output_name)),
        )
        rows = select(found.c.project, found.c.input_digest, *named.c)
        joined = rows.select_from(found.join(named, true()))
        return [outdated, upsert_rows(dialect, work_outputs, joined)]

    return make_chain(dialect, kept, follow)


def _is_of(project: str, input_digest: str) -> ColumnElement[bool]:
    return and_(work_results.c.project == project, work_results.c.input_digest == input_digest)


def _is_noted() -> Label[bool]:
    recently = seconds_from_now(-_NOTED_EVERY.total_seconds())
    return func.coalesce(work_results.c.use_time >= recently, False).label("is_noted")


def _noted(engine: Engine, project: str, input_digest: str, row: Row[Any]) -> WorkResult | None:
    """Return the result of a row, and note that it was used unless that was noted within the hour.

    Who is given a result can rely on it: either the note comes first, and `expire_results` leaves the
    result alone, or the result is forgotten first, and is not given.
    """
    if not row.is_noted:
        with transaction(engine, writes=True, in_one_statement=True) as connection:
            noted = connection.execute(
                update(work_results)
                .where(_is_of(project, input_digest))
                .values(use_time=seconds_from_now(0.0))
            )
            if noted.rowcount == 0:
                return None
    try:
        return read_document(
            WorkResult, row.document, of=f"result {input_digest}", remedy="it is computed anew"
        )
    except UnreadableRecordError as error:
        log.warning("results.unreadable", project=project, error=str(error))
        return None


_UNIT = _unit_query()


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
            # of servers that were killed, and of units that nobody wanted again
            connection.execute(delete(unit_claims).where(unit_claims.c.expire_time < cutoff))
            return connection.execute(delete(work_results).where(old)).rowcount
