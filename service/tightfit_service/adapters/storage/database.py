"""Opening a database, bringing its schema up to date, and translating its errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from tightfit_service.domain.errors import (
    PreconditionError,
    ResourceExhaustedError,
    TightfitError,
    UnavailableError,
)

_MIGRATIONS = "tightfit_service.adapters.storage:migrations"
_WRITES = "tightfit_writes"


def open_database(url: str, *, busy_seconds: float = 10.0) -> Engine:
    """Return an engine for `url`, such as `sqlite:////var/lib/tightfit/state.db`.

    Nothing is connected yet. On SQLite every connection uses write-ahead logging, so that readers
    never wait for a writer, and full synchronisation, so that what was committed survives a power cut.

    Args:
        url: SQLAlchemy URL.
        busy_seconds: How long a statement waits for another writer before UnavailableError.
    """
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":
        _set_up_sqlite(engine, busy_seconds)
    return engine


def _set_up_sqlite(engine: Engine, busy_seconds: float) -> None:
    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: object) -> None:
        # the driver's own transaction handling begins too late: we emit BEGIN ourselves below
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later can find its snapshot stale, and then no
        # waiting helps; taking the write lock at once makes writers queue instead.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def upgrade(engine: Engine, *, revision: str = "head") -> None:
    """Bring the schema to `revision`; servers that start together wait for one another.

    Raises:
        PreconditionError: The database was written by a newer tightfit.
        UnavailableError, ResourceExhaustedError: See `transaction`.
    """
    with transaction(engine, writes=True) as connection:
        config = migration_config(connection)
        present = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if present is not None and present not in known:
            raise PreconditionError(
                f"the database has schema {present}, which this version does not know",
                field="database_url",
                remedy="start the version of tightfit that wrote it, or a newer one",
            )
        command.upgrade(config, revision)


def downgrade(engine: Engine, *, revision: str) -> None:
    """Take the schema back to `revision` (`base` removes all tables and what is in them)."""
    with transaction(engine, writes=True) as connection:
        command.downgrade(migration_config(connection), revision)


def migration_config(connection: Connection) -> Config:
    """Return Alembic's configuration for the packaged migrations on an open connection."""
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    config.attributes["connection"] = connection
    return config


@contextmanager
def transaction(engine: Engine, *, writes: bool) -> Iterator[Connection]:
    """Yield a connection inside one transaction, committed at the end, rolled back on an error.

    Raises:
        ResourceExhaustedError: The disk or the database's quota is full.
        UnavailableError: The database cannot be reached, is locked for too long, or is damaged.
    """
    try:
        with (
            engine.connect().execution_options(**{_WRITES: writes}) as connection,
            connection.begin(),
        ):
            yield connection
    except PoolTimeoutError as error:
        raise UnavailableError(
            "all connections to the database are busy", remedy="try again in a moment"
        ) from error
    except DBAPIError as error:
        known = _translated(error)
        if known is None:
            raise
        raise known from error


def _translated(error: DBAPIError) -> TightfitError | None:
    """Return the error of the domain for a failure of the database, None for a fault of ours."""
    cause: Any = error.orig
    sqlite_name = str(getattr(cause, "sqlite_errorname", ""))
    sql_state = str(getattr(cause, "sqlstate", "") or "")
    if sqlite_name == "SQLITE_FULL" or sql_state in {"53100", "53200"}:
        return ResourceExhaustedError(
            "the database has no room left",
            remedy="free disk space or delete jobs, models and datasets",
        )
    if sqlite_name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return UnavailableError("the database is locked", remedy="try again in a moment")
    if sqlite_name in {"SQLITE_CORRUPT", "SQLITE_NOTADB"}:
        return UnavailableError(
            "the database file is damaged", remedy="restore the data folder from a backup"
        )
    if error.connection_invalidated or isinstance(error, OperationalError):
        return UnavailableError(
            "the database cannot be used at present",
            remedy="try again; check the server's log and its data folder",
        )
    return None
