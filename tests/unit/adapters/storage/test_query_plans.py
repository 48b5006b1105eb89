"""What is asked again and again finds its rows by an index, on both databases, with many jobs in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, insert, text

from fakes.databases import open_migrated
from fakes.postgres_server import reason_missing, running_postgres
from fakes.records import START, make_event, make_job
from tightfit_service.adapters.storage.database import open_database, transaction, upgrade
from tightfit_service.adapters.storage.rows import job_columns
from tightfit_service.adapters.storage.schema import (
    assets,
    jobs,
    trials,
    work_outputs,
    work_results,
)
from tightfit_service.adapters.storage.sql_job_expiry import SqlJobExpiry
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_quotas import SqlQuotaStore
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.ports import Lease, Page
from tightfit_service.domain.job import JobState
from tightfit_service.domain.quota import Quota

JOBS = 6_000
RESULTS = 6_000
TABLES = ("jobs", "trials", "assets", "work_results", "work_outputs")


@dataclass(frozen=True)
class Statement:
    sql: str
    parameters: Any


def fill(engine: Engine) -> None:
    """Store jobs of six projects: one in fifty is queued, one in a hundred runs."""
    template = job_columns(make_job())
    rows = []
    for number in range(JOBS):
        state = JobState.SUCCEEDED
        if number % 50 == 0:
            state = JobState.RUNNING if number % 100 == 0 else JobState.QUEUED
        rows.append(
            {
                **template,
                "job_id": f"j{number}",
                "project": f"p{number % 6}",
                "state": state.value,
                "create_time": START + timedelta(seconds=number),
                "request_id": f"r{number}",
                "last_sequence": 0,
                "document": {
                    **template["document"],
                    "job_id": f"j{number}",
                    "project": f"p{number % 6}",
                    "state": state.value,
                },
            }
        )
    with transaction(engine, writes=True) as connection:
        connection.execute(insert(jobs), rows)
        connection.execute(
            insert(trials),
            [
                {
                    "job_id": row["job_id"],
                    "trial_index": 0,
                    "input_digest": f"unit{number}",
                    "document": {},
                }
                for number, row in enumerate(rows)
            ],
        )
        fill_stored(connection)
        if engine.dialect.name == "postgresql":
            connection.execute(
                text(
                    "INSERT INTO job_leases (job_id, token, owner, expire_time, losses) SELECT job_id, "
                    "1, 'r', now() + interval '1 hour', '[]' FROM jobs WHERE state = 'running'"
                )
            )
        # else SQLite's planner has no statistics, and goes by the indexes alone
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as plain:
        plain.execute(text("ANALYZE"))


def fill_stored(connection: Connection) -> None:
    """Store assets and results of sixty projects."""
    keys = [
        {"project": f"p{number % 60}", "input_digest": f"unit{number}"} for number in range(RESULTS)
    ]
    connection.execute(insert(work_results), [{"document": {}, **key} for key in keys])
    connection.execute(
        insert(work_outputs),
        [
            {"output_name": "model", "digest": f"of {key['input_digest']}", "size_bytes": 7, **key}
            for key in keys
        ],
    )
    connection.execute(
        insert(assets),
        [
            {
                "project": f"p{number % 60}",
                "kind": "model",
                "asset_id": f"m{number}",
                "digest": f"of asset {number}",
                "size_bytes": 3,
                "display_name": "",
                "create_time": START,
                "description": {},
            }
            for number in range(RESULTS)
        ],
    )


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Engine]:
    if reason := reason_missing():
        pytest.skip(reason)
    with running_postgres() as server:
        engine = open_database(server.database())
        upgrade(engine)
        fill(engine)
        yield engine
        engine.dispose()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_migrated(tmp_path_factory.mktemp("plans") / "state.db")
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


@contextmanager
def recorded(engine: Engine) -> Iterator[list[Statement]]:
    statements: list[Statement] = []

    def record(*arguments: Any) -> None:
        statements.append(Statement(arguments[2], arguments[3]))

    event.listen(engine, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", record)


def whole_scans(connection: Connection, statement: Statement) -> list[str]:
    """Return the tables that the plan of a statement reads from end to end."""
    if connection.dialect.name == "sqlite":
        plan = connection.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {statement.sql}", statement.parameters
        )
        lines = [str(row[-1]) for row in plan]
        # "SCAN jobs USING INDEX" walks along an index, and stops at the limit
        scans = tuple(f"SCAN {table}" for table in TABLES)
        return [line for line in lines if line.startswith(scans) and "INDEX" not in line]
    plan = connection.exec_driver_sql(
        f"EXPLAIN (FORMAT JSON) {statement.sql}", statement.parameters
    )
    found: list[str] = []

    def look(node: dict[str, Any]) -> None:
        if node["Node Type"] in ("Seq Scan", "Parallel Seq Scan"):
            found.append(node["Relation Name"])
        for child in node.get("Plans", ()):
            look(child)

    document = plan.scalar_one()
    look((json.loads(document) if isinstance(document, str) else document)[0]["Plan"])
    return [name for name in found if name in TABLES]


def claim(engine: Engine) -> object:
    queue = SqlJobQueue(engine=engine)
    quota = Quota(running_jobs=1_000)
    return queue.claim_job("me", lease_seconds=60, now=START, quota=quota)


LEASES = [Lease(job_id=f"j{n}", owner="r", token=1) for n in range(0, 600, 100)]

CALLS: dict[str, Callable[[Engine], object]] = {
    "list": lambda engine: SqlStore(engine=engine).list_jobs("p0", Page(size=50)),
    "list further": lambda engine: SqlStore(engine=engine).list_jobs(
        "p0", Page(size=50, after="j3000")
    ),
    "list by state": lambda engine: SqlStore(engine=engine).list_jobs(
        "p0", Page(size=50), states=[JobState.QUEUED]
    ),
    "get": lambda engine: SqlStore(engine=engine).get_job("p0", "j0"),
    "create": lambda engine: SqlStore(engine=engine).create_job(
        make_job("new", project="p1", request_id="new"), quota=Quota(queued_jobs=1_000)
    ),
    "event": lambda engine: SqlStore(engine=engine).append_event(make_event("j1")),
    "marks": lambda engine: SqlStore(engine=engine).job_marks([f"j{n}" for n in range(50)]),
    "claim": claim,
    "take over": lambda engine: SqlJobQueue(engine=engine).take_over_job(
        "j0", "me", lease_seconds=60, now=START
    ),
    "heartbeat": lambda engine: SqlJobQueue(engine=engine).renew_leases(LEASES, lease_seconds=60),
    "cancels": lambda engine: SqlJobQueue(engine=engine).cancel_requests("r"),
    "cancel": lambda engine: SqlJobQueue(engine=engine).request_cancel("p2", "j50"),
    "usage": lambda engine: SqlQuotaStore(engine=engine).get_usage("p0"),
    "delete": lambda engine: SqlStore(engine=engine).delete_job("p1", "j7"),
    "expire": lambda engine: SqlJobExpiry(engine=engine).expire_jobs(ended_before=START),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_call_reads_a_whole_table(engine: Engine, name: str) -> None:
    with recorded(engine) as statements:
        CALLS[name](engine)
    kinds = ("SELECT", "UPDATE", "DELETE", "WITH")
    asked = [one for one in statements if one.sql.split()[0] in kinds]
    assert asked
    with engine.connect() as connection:
        for statement in asked:
            assert not whole_scans(connection, statement), statement.sql


def test_a_scan_would_be_noticed(engine: Engine) -> None:
    with engine.connect() as connection:
        bad = Statement("SELECT document FROM jobs WHERE model_digest <> 'x'", ())
        assert whole_scans(connection, bad)
        bad = Statement("SELECT sum(size_bytes) FROM assets", ())
        assert whole_scans(connection, bad)
