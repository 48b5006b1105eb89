"""The database's own clock: the one that all replicas agree on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from tightfit_service.adapters.storage.schema import UtcTime


class seconds_from_now(FunctionElement[datetime]):  # noqa: N801  # reads as the SQL function it is
    """A moment so many seconds after the transaction's beginning; less than 0 for before."""

    inherit_cache = True
    type = UtcTime()


@compiles(seconds_from_now, "postgresql")
def _in_postgresql(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    return f"(now() + make_interval(secs => {compiler.process(element.clauses, **options)}))"


@compiles(seconds_from_now, "sqlite")
def _in_sqlite(element: seconds_from_now, compiler: SQLCompiler, **options: Any) -> str:
    # in the form that SQLAlchemy stores moments in, so that texts compare as moments do
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


def database_time(connection: Connection) -> datetime:
    """Return the database's time, UTC."""
    moment: datetime = connection.execute(select(seconds_from_now(0.0))).scalar_one()
    return moment
