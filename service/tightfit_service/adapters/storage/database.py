"""Opening a database, bringing its schema up to date, and the transactions of the stores."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from tightfit_service.adapters.storage.documents import load_document
from tightfit_service.adapters.storage.sql_errors import translated
from tightfit_service.domain.errors import (
    InvalidRequestError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)

_MIGRATIONS = "tightfit_service.adapters.storage:migrations"
_WRITES = "tightfit_writes"

POSTGRESQL = "postgresql"

_MIGRATION_LOCK = 0x7469676874666974
"""Key of PostgreSQL's advisory lock around migrations: the letters `tightfit`."""

_TRIED_AFTER_SECONDS = 1.0
"""How long a connection may have lain idle and is used all the same without a word to the server first."""

_DDL_LOCK_SECONDS = 10
"""How long a migration waits for a table: everybody else waits behind it meanwhile."""


def open_database(
    url: str,
    *,
    busy_seconds: float = 10.0,
    pool_size: int = 10,
    statement_seconds: float = 30.0,
) -> Engine:
    """Return an engine for `url`: `sqlite:////var/lib/tightfit/state.db`, `postgresql://user:word@host/name`.

    Nothing is connected yet. On SQLite every connection uses write-ahead logging, so that readers
    never wait for a writer, and full synchronisation, so that what was committed survives a power cut.
    On PostgreSQL a connection that lay idle is tried before it is used, and one whose server has gone
    silent is given up after `busy_seconds`.

    Args:
        url: SQLAlchemy URL.
        busy_seconds: How long a statement waits for another writer before UnavailableError.
        pool_size: Connections that are held on PostgreSQL; as many more are opened under load.
        statement_seconds: A statement that takes longer is ended by PostgreSQL.

    Raises:
        InvalidRequestError: The URL cannot be read or names an unknown database.
        UnsupportedError: The driver of the database is not installed.
    """
    address = _address(url)
    if address.get_backend_name() == "sqlite":
        # PostgreSQL checks itself that documents are JSON
        engine = create_engine(address, json_deserializer=load_document)
        _set_up_sqlite(engine, busy_seconds)
        return engine
    if util.find_spec("psycopg") is None:
        raise UnsupportedError(
            "what talks to PostgreSQL is not installed where this server runs",
            field="database_url",
            remedy="install tightfit-service[postgres]",
        )
    engine = create_engine(
        address,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=busy_seconds,
        # few connections are busy rather than all now and then: they keep what they prepared at hand
        pool_use_lifo=True,
        connect_args=_postgresql_options(busy_seconds, statement_seconds),
    )
    _try_idle_connections(engine)
    return engine


def _address(url: str) -> URL:
    try:
        address = make_url(url)
        name = address.get_backend_name()
        if name == POSTGRESQL:
            return address.set(drivername="postgresql+psycopg")
        if name == "sqlite":
            return address
    except (ArgumentError, NoSuchModuleError) as error:
        # the URL is not shown: it may hold a password
        raise InvalidRequestError(
            "the URL of the database cannot be read",
            field="database_url",
            remedy="write postgresql://user:password@host:5432/name or sqlite:////path",
        ) from error
    raise InvalidRequestError(
        f"{name} is not a database that tightfit works on",
        field="database_url",
        remedy="use PostgreSQL or SQLite",
    )


def _postgresql_options(busy_seconds: float, statement_seconds: float) -> dict[str, Any]:
    busy = int(busy_seconds * 1000)
    return {
        "connect_timeout": max(2, int(busy_seconds)),
        # a server that vanished without a word is noticed after busy_seconds, not after TCP's minutes
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": busy,
        "application_name": "tightfit",
        "options": (
            f"-c statement_timeout={int(statement_seconds * 1000)} -c lock_timeout={busy} "
            f"-c idle_in_transaction_session_timeout={int(statement_seconds * 1000)}"
        ),
    }


def _try_idle_connections(engine: Engine) -> None:
    """Have connections tried that lay idle, so that a restarted server is not met with dead ones.

    One in steady use is not: a server that goes away takes what is under way with it in any case, the
    first that notices has all others made anew, and a round trip before each statement would
    cost as much as the statement.
    """

    @event.listens_for(engine, "checkin")
    def note(_: object, record: ConnectionPoolEntry) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def try_it(connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
        idle_since = record.info.get("idle_since")
        if idle_since is None or time.monotonic() - idle_since < _TRIED_AFTER_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            # the pool connects anew, and again for every other connection of that time
            raise InvalidatePoolError from error


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
        _wait_for_migrations(connection)
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
        _wait_for_migrations(connection)
        command.downgrade(migration_config(connection), revision)


def _wait_for_migrations(connection: Connection) -> None:
    """Let one process at a time change the schema; SQLite's write lock does that by itself."""
    if connection.dialect.name != POSTGRESQL:
        return
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    connection.execute(text(f"SET LOCAL lock_timeout = '{_DDL_LOCK_SECONDS}s'"))


def migration_config(connection: Connection) -> Config:
    """Return Alembic's configuration for the packaged migrations on an open connection."""
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    config.attributes["connection"] = connection
    return config


@contextmanager
def transaction(
    engine: Engine, *, writes: bool, in_one_statement: bool = False
) -> Iterator[Connection]:
    """Yield a connection inside one transaction, committed at the end, rolled back on an error.

    Args:
        engine: The database.
        writes: Whether something is changed.
        in_one_statement: Whether that is one statement on PostgreSQL, where each is a transaction by
            itself then; on SQLite there may be several.

    Raises:
        ResourceExhaustedError: The disk or the database's quota is full.
        UnavailableError: The database cannot be reached, is locked for too long, or is damaged.
    """
    options: dict[str, Any] = {_WRITES: writes}
    if engine.dialect.name == POSTGRESQL and (in_one_statement or not writes):
        # every statement sees what is committed then, inside a transaction or not: two messages less
        options["isolation_level"] = "AUTOCOMMIT"
    try:
        with (
            engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            yield connection
    except PoolTimeoutError as error:
        raise UnavailableError(
            "all connections to the database are busy", remedy="try again in a moment"
        ) from error
    except DBAPIError as error:
        known = translated(error)
        if known is None:
            raise
        raise known from error
