"""PostgreSQL: migrations among running replicas, outages, deadlocks, and what its errors become."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.exc import OperationalError

from fakes.postgres_server import PostgresServer, reason_missing, running_postgres
from fakes.records import START, make_event, make_job, make_trial
from tightfit_service.adapters.storage.database import (
    downgrade,
    open_database,
    transaction,
    upgrade,
)
from tightfit_service.adapters.storage.schema import metadata
from tightfit_service.adapters.storage.sql_errors import ConflictError, repeated, translated
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import Claim, Lease
from tightfit_service.domain.errors import (
    InvalidRequestError,
    LeaseLostError,
    ResourceExhaustedError,
    UnavailableError,
)
from tightfit_service.domain.job import JobState
from tightfit_service.domain.quota import Quota

BEFORE_LEASES = "0003"
BEFORE_FENCES = "0012"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    if reason := reason_missing():
        pytest.skip(reason)
    with running_postgres(survives="kill") as found:
        yield found


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.database()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url)
    yield engine
    engine.dispose()


@pytest.fixture
def impatient(url: str) -> Iterator[Engine]:
    """For what has to be given up; a busy machine may be slower than that between two statements."""
    engine = open_database(url, busy_seconds=2.0, statement_seconds=2.0)
    yield engine
    engine.dispose()


pg = pytest.mark.debian


@pg
def test_migrations_go_up_down_and_up_again(engine: Engine) -> None:
    for _ in range(2):
        upgrade(engine)
        assert set(inspect(engine).get_table_names()) - {"alembic_version"} == set(metadata.tables)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, metadata) == []
        downgrade(engine, revision="base")
        assert set(inspect(engine).get_table_names()) <= {"alembic_version"}


@pg
def test_replicas_that_start_together_migrate_once(url: str) -> None:
    engines = [open_database(url) for _ in range(6)]
    statements: list[str] = []
    for engine in engines:
        event.listen(
            engine, "before_cursor_execute", lambda *args: statements.append(str(args[2]).lstrip())
        )
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(upgrade, engines))
    assert sum(one.startswith("CREATE TABLE jobs ") for one in statements) == 1
    for engine in engines:
        engine.dispose()


@pg
def test_servers_of_the_version_before_go_on_while_the_schema_grows(
    engine: Engine, url: str
) -> None:
    upgrade(engine, revision=BEFORE_LEASES)
    old = text(
        "INSERT INTO jobs (job_id, project, state, create_time, revision, last_sequence, "
        "model_digest, document) VALUES (:id, 'default', :state, now(), 0, 0, 'd', :document)"
    )
    written: list[str] = []
    stop = threading.Event()

    def go_on() -> None:
        """Write and read as the version before does."""
        other = open_database(url)
        while not stop.is_set() or len(written) < 5:
            name = f"old{len(written)}"
            state = "running" if len(written) == 0 else "queued"
            document = make_job(name, state=JobState(state))
            with transaction(other, writes=True) as connection:
                values = {"id": name, "state": state, "document": _json(document)}
                connection.execute(old, values)
            with transaction(other, writes=False) as connection:
                rows = connection.execute(text("SELECT job_id, document FROM jobs")).all()
            written.append(name)
            assert len(rows) == len(written)
        other.dispose()

    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(go_on)
        while not written:
            stop.wait(0.01)
        upgrade(engine)
        stop.set()
        going_on.result(timeout=60)
    queue = SqlJobQueue(engine=engine)
    taken = set()
    while claim := queue.claim_job("new", lease_seconds=60, now=START, quota=Quota()):
        taken.add(claim.job.job_id)
        if claim.job.job_id == "old0":
            assert claim.losses[0].owner == "an earlier version"
    assert taken == set(written)


def _json(job: Any) -> str:
    return json.dumps(to_plain(job))


@pg
def test_a_database_that_was_killed_is_unavailable_and_then_used_again(
    server: PostgresServer, engine: Engine
) -> None:
    upgrade(engine)
    store, queue = SqlStore(engine=engine), SqlJobQueue(engine=engine)
    store.create_job(make_job())
    claim = queue.claim_job("a", lease_seconds=60, now=START, quota=Quota())
    assert claim is not None
    told = store.append_event(make_event(), lease=claim.lease)
    server.kill()
    for call in (
        lambda: store.get_job("default", "job"),
        lambda: queue.renew_leases([claim.lease], lease_seconds=60),
    ):
        with pytest.raises(UnavailableError) as caught:
            call()
        assert caught.value.remedy
    server.start()
    assert store.get_job("default", "job") == claim.job
    assert list(store.list_events("job", after=0, limit=9)) == [told]
    assert list(queue.renew_leases([claim.lease], lease_seconds=60)) == ["job"]


@pg
def test_a_server_that_was_restarted_meets_no_dead_connections_after_a_while(
    server: PostgresServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tightfit_service.adapters.storage.database._TRIED_AFTER_SECONDS", 0.0)
    upgrade(engine)
    store = SqlStore(engine=engine)
    job = store.create_job(make_job())
    with transaction(engine, writes=False), transaction(engine, writes=False):
        pass  # two connections lie idle now
    server.kill()
    server.start()
    with transaction(engine, writes=False) as one, transaction(engine, writes=True) as another:
        for connection in (one, another):
            assert connection.execute(text("SELECT 1")).scalar() == 1
    assert store.append_event(make_event()).sequence == 1
    assert store.get_job("default", "job") == job


@pg
def test_a_connection_in_steady_use_is_not_tried_each_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tightfit_service.adapters.storage.database._TRIED_AFTER_SECONDS", 600.0)
    upgrade(engine)
    store = SqlStore(engine=engine)
    store.create_job(make_job())
    tried: list[object] = []
    monkeypatch.setattr(engine.dialect, "do_ping", tried.append)
    for _ in range(3):
        store.append_event(make_event())
    assert not tried
    monkeypatch.setattr("tightfit_service.adapters.storage.database._TRIED_AFTER_SECONDS", 0.0)
    store.append_event(make_event())
    assert len(tried) == 1


def _claimed(queue: SqlJobQueue, owner: str) -> Claim:
    claim = queue.claim_job(owner, lease_seconds=60, now=START, quota=Quota())
    assert claim is not None
    return claim


_WRITES: dict[str, Callable[[SqlStore, Claim], object]] = {
    "event": lambda store, claim: store.append_event(make_event(), lease=claim.lease),
    "trial": lambda store, claim: store.save_trial(
        "job", make_trial(artifacts={"model": "a" * 64}), event=make_event(), lease=claim.lease
    ),
    "job": lambda store, claim: store.update_job(
        replace(claim.job, spent_seconds=9.0), lease=claim.lease
    ),
    "end": lambda store, claim: store.update_job(
        replace(claim.job, state=JobState.FAILED), lease=claim.lease
    ),
}


@pg
@pytest.mark.parametrize("write", _WRITES.values(), ids=_WRITES)
def test_a_writer_that_waited_while_somebody_took_its_job_writes_nothing(
    engine: Engine, url: str, write: Callable[[SqlStore, Claim], object]
) -> None:
    """The taker is a replica of the version before: it writes to the leases, and knows no fence in jobs."""
    upgrade(engine)
    store = SqlStore(engine=engine)
    store.create_job(make_job())
    claim = _claimed(SqlJobQueue(engine=engine), "a")
    other = open_database(url)
    with ThreadPoolExecutor(1) as pool:
        with transaction(other, writes=True) as connection:
            connection.execute(text("SELECT 1 FROM jobs FOR UPDATE"))
            waiting = pool.submit(write, store, claim)
            _until_somebody_waits(engine)
            connection.execute(text("UPDATE job_leases SET token = token + 1, owner = 'b'"))
        with pytest.raises(LeaseLostError, match="held by b"):
            waiting.result(timeout=30)
    other.dispose()
    assert store.get_job("default", "job") == claim.job
    assert not store.list_events("job", after=0, limit=9)
    assert not store.list_trials("job")
    assert not store.is_digest_used("default", "a" * 64)
    current = Lease(job_id="job", owner="b", token=claim.lease.token + 1)
    assert store.append_event(make_event(), lease=current).sequence == 1


def _until_somebody_waits(engine: Engine) -> None:
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    deadline = time.monotonic() + 10
    while True:
        with transaction(engine, writes=False) as connection:
            if connection.execute(query).scalar():
                return
        assert time.monotonic() < deadline, "nobody waits for the row"
        time.sleep(0.01)


@pg
def test_a_job_that_an_older_server_holds_is_fenced_once_the_schema_has_grown(
    engine: Engine,
) -> None:
    upgrade(engine, revision=BEFORE_FENCES)
    document = _json(make_job(state=JobState.RUNNING))
    with transaction(engine, writes=True) as connection:
        connection.execute(
            text(
                "INSERT INTO jobs (job_id, project, state, create_time, revision, last_sequence, "
                "model_digest, document) VALUES ('job', 'default', 'running', now(), 0, 0, 'd', :doc)"
            ),
            {"doc": document},
        )
        connection.execute(
            text(
                "INSERT INTO job_leases (job_id, token, owner, expire_time, losses) "
                "VALUES ('job', 7, 'old', now() + interval '1 minute', '[]')"
            )
        )
    upgrade(engine)
    store = SqlStore(engine=engine)
    with pytest.raises(LeaseLostError, match="held by old"):
        store.append_event(make_event())
    assert store.append_event(make_event(), lease=Lease(job_id="job", owner="old", token=7))
    with transaction(engine, writes=True) as connection:  # it hands the job back
        connection.execute(text("UPDATE job_leases SET expire_time = NULL"))
    assert store.append_event(make_event()).sequence == 2


@pg
def test_a_statement_that_takes_too_long_is_given_up(impatient: Engine) -> None:
    with pytest.raises(UnavailableError), transaction(impatient, writes=False) as connection:
        connection.execute(text("SELECT pg_sleep(30)"))


@pg
def test_a_row_that_is_locked_for_too_long_is_unavailable(
    engine: Engine, impatient: Engine
) -> None:
    upgrade(engine)
    patient = SqlStore(engine=engine)
    job = patient.create_job(make_job())
    with transaction(engine, writes=True) as connection:
        connection.execute(text("SELECT 1 FROM jobs FOR UPDATE"))
        assert patient.get_job("default", "job") == job, "readers do not wait"
        with pytest.raises(UnavailableError):
            SqlStore(engine=impatient).update_job(job)
    assert patient.update_job(job)


@pg
def test_a_deadlock_is_repeated_and_both_succeed(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    for name in "xy":
        store.create_job(make_job(name))
    both_hold_one = threading.Barrier(2)
    attempts: list[str] = []

    @repeated
    def lock_in_order(first: str, second: str) -> None:
        attempts.append(first)
        query = text("UPDATE jobs SET revision = revision + 1 WHERE job_id = :id")
        with transaction(engine, writes=True) as connection:
            connection.execute(query, {"id": first})
            if attempts.count(first) == 1:
                both_hold_one.wait(10)
            connection.execute(query, {"id": second})

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lock_in_order, "xy", "yx"))
    assert len(attempts) == 3
    assert [store.get_job("default", name).job_id for name in "xy"] == ["x", "y"]
    marks = store.job_marks(["x", "y"])
    assert {mark.revision for mark in marks.values()} == {2}


@pg
def test_the_clock_of_leases_is_the_databases(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade(engine)
    store, queue = SqlStore(engine=engine), SqlJobQueue(engine=engine)
    store.create_job(make_job())
    # a replica whose clock is years ahead: `now` is only written to the job
    future = START.replace(year=2090)
    claim = queue.claim_job("ahead", lease_seconds=60, now=future, quota=Quota())
    assert claim is not None
    assert queue.claim_job("other", lease_seconds=60, now=future, quota=Quota()) is None
    with transaction(engine, writes=False) as connection:
        left = connection.execute(
            text("SELECT extract(epoch FROM expire_time - now()) FROM job_leases")
        ).scalar_one()
    assert 50 < float(left) <= 60
    store.update_job(replace(claim.job, spent_seconds=1.0), lease=claim.lease)


class _StateError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__("it failed")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", ResourceExhaustedError),
        ("40001", ConflictError),
        ("40P01", ConflictError),
        ("55P03", UnavailableError),
        ("57P01", UnavailableError),
        ("25006", UnavailableError),
    ],
)
def test_states_become_errors_with_a_remedy(state: str, kind: type[Exception]) -> None:
    error = translated(OperationalError("SELECT 1", {}, _StateError(state)))
    assert type(error) is kind
    assert error.remedy


@pytest.mark.parametrize("url", ["mysql://u:secret@h/d", "no url", "postgresql:secret"])
def test_a_url_that_cannot_be_used_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        open_database(url)
    assert caught.value.field == "database_url"
    assert caught.value.remedy
    assert "secret" not in str(caught.value)


def test_urls_of_postgresql_get_the_driver_that_is_installed() -> None:
    engine = open_database("postgresql://u:p@h:1/d")
    assert engine.dialect.driver == "psycopg"
    assert engine.dialect.name == "postgresql"
