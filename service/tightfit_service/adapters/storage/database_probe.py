"""Looks at the database: the queue, the schema, the clock."""

from __future__ import annotations

from datetime import UTC, datetime

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, select

from tightfit_service.adapters.storage.database import migration_config, transaction
from tightfit_service.adapters.storage.schema import UtcTime, jobs
from tightfit_service.application.ports.diagnosis import QueueView, SchemaView
from tightfit_service.domain.job import JobState

_ACTIVE = [state.value for state in JobState if not state.is_final]


class SqlDatabaseProbe:
    """Implements `DatabaseProbe` on the engine of the stores."""

    def __init__(self, *, engine: Engine) -> None:
        self._engine = engine

    def queue(self) -> QueueView:
        """See `DatabaseProbe`."""
        with transaction(self._engine, writes=False) as connection:
            rows = connection.execute(
                select(jobs.c.state, func.count(), func.min(jobs.c.create_time))
                .where(jobs.c.state.in_(_ACTIVE))
                .group_by(jobs.c.state)
            ).all()
            now: datetime = connection.execute(
                select(func.current_timestamp(type_=UtcTime()))
            ).scalar_one()
        oldest = {state: first for state, _, first in rows}
        return QueueView(
            counts={JobState(state): count for state, count, _ in rows},
            oldest_create_time=oldest.get(JobState.QUEUED.value),
            now=now.astimezone(UTC),
        )

    def schema(self) -> SchemaView:
        """See `DatabaseProbe`."""
        with transaction(self._engine, writes=False) as connection:
            script = ScriptDirectory.from_config(migration_config(connection))
            return SchemaView(
                present=MigrationContext.configure(connection).get_current_revision() or "none",
                expected=script.get_current_head() or "none",
            )

    def describe(self) -> str:
        """See `DatabaseProbe`."""
        with transaction(self._engine, writes=False) as connection:
            dialect = connection.dialect
            version = ".".join(str(part) for part in dialect.server_version_info or ())
        name = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}.get(dialect.name, dialect.name)
        return f"{name} {version}"
