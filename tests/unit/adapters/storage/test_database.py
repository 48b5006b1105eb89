"""The schema goes up and down, equals the tables in code, and failures become errors of the domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, inspect, text
from sqlalchemy.exc import IntegrityError

from fakes.records import make_job, make_trial
from tightfit_service.adapters.storage.database import (
    downgrade,
    open_database,
    transaction,
    upgrade,
)
from tightfit_service.adapters.storage.schema import metadata
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.application.ports import Page
from tightfit_service.domain.errors import (
    InvalidRequestError,
    PreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url, busy_seconds=0.05)
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_migrations_go_up_down_and_up_again(engine: Engine) -> None:
    upgrade(engine)
    assert tables(engine) == set(metadata.tables)
    downgrade(engine, revision="base")
    assert tables(engine) == set()
    upgrade(engine)
    SqlStore(engine=engine).create_job(make_job())


def test_the_migrated_schema_equals_the_tables_in_code(engine: Engine) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_an_upgrade_keeps_what_is_there(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    job = store.create_job(make_job())
    upgrade(engine)
    assert store.get_job("default", "job") == job


def test_steps_of_the_schema_lose_nothing_of_jobs(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    job = store.create_job(make_job())
    store.save_trial("job", make_trial(artifacts={"model": "a" * 64}))
    downgrade(engine, revision="0012")
    upgrade(engine)
    assert store.get_job("default", "job") == job
    assert store.list_trials("job") == [make_trial(artifacts={"model": "a" * 64})]
    assert store.is_digest_used("default", "a" * 64)


def test_a_database_of_a_newer_version_is_refused(engine: Engine) -> None:
    upgrade(engine)
    with transaction(engine, writes=True) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(PreconditionError, match="9999"):
        upgrade(engine)


def test_a_failed_transaction_leaves_nothing(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    job = store.create_job(make_job())
    with pytest.raises(IntegrityError):
        # the row of the trial is written before the row of its artifact
        store.save_trial("job", make_trial(artifacts={"model": None}))
    assert not store.list_trials("job")
    assert store.get_job("default", "job") == job


def test_a_full_disk_is_resource_exhausted(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    store.create_job(make_job())
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    with pytest.raises(ResourceExhaustedError) as caught:
        store.save_trial("job", make_trial(notes=("x" * 1_000_000,)))
    assert caught.value.remedy
    assert store.get_job("default", "job")


def test_a_database_locked_for_too_long_is_unavailable(engine: Engine, url: str) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    other = open_database(url)
    with transaction(other, writes=True), pytest.raises(UnavailableError, match="locked"):
        store.create_job(make_job())
    other.dispose()
    assert store.create_job(make_job())


def test_readers_do_not_wait_for_a_writer(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    job = store.create_job(make_job())
    with transaction(engine, writes=True):
        assert store.get_job("default", "job") == job


def test_a_folder_that_is_missing_is_unavailable(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'missing' / 'state.db'}")
    with pytest.raises(UnavailableError):
        upgrade(engine)


def test_a_file_that_is_no_database_is_unavailable(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(UnavailableError, match="damaged"):
        upgrade(engine)


def test_a_fault_of_ours_is_not_hidden(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    with pytest.raises(AttributeError):
        store.create_job(None)  # type: ignore[arg-type]  # the fault


def test_what_is_committed_is_there_for_another_process(engine: Engine, url: str) -> None:
    upgrade(engine)
    job = SqlStore(engine=engine).create_job(make_job())
    other = open_database(url)
    assert SqlStore(engine=other).get_job("default", "job") == job
    other.dispose()


def test_a_page_token_that_is_no_index_is_refused(engine: Engine) -> None:
    upgrade(engine)
    with pytest.raises(InvalidRequestError):
        SqlStore(engine=engine).list_trials("job", Page(size=1, after="x"))


def test_an_insert_that_lost_a_race_is_repeated_once(engine: Engine) -> None:
    upgrade(engine)
    store = SqlStore(engine=engine)
    inserts: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def lose_the_first(*arguments: Any) -> None:
        cursor, statement, parameters = arguments[1:4]
        if statement.startswith("INSERT INTO jobs"):
            inserts.append(statement)
            if len(inserts) == 1:
                cursor.execute(statement, parameters)

    job = make_job(request_id="r")
    assert store.create_job(job) == job
    assert len(inserts) == 2
    assert len(store.list_jobs("default", Page(size=9))) == 1


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (
            "SELECT 1 FROM jobs WHERE project='p' ORDER BY create_time DESC, job_id DESC",
            "ix_jobs_project_create_time_job_id",
        ),
        ("SELECT 1 FROM jobs WHERE state IN ('queued')", "ix_jobs_state_create_time"),
        ("SELECT 1 FROM trial_artifacts WHERE digest='d'", "ix_trial_artifacts_digest"),
        ("SELECT 1 FROM work_outputs WHERE digest='d'", "ix_work_outputs_digest"),
        ("SELECT 1 FROM assets WHERE digest='d'", "ix_assets_digest"),
        (
            "SELECT 1 FROM jobs WHERE project='p' AND request_id='r'",
            "sqlite_autoindex_jobs",
        ),
    ],
)
def test_queries_use_an_index(engine: Engine, query: str, index: str) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
    assert all(index in row[-1] for row in plan)
