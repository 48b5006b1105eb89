"""Runs migrations on the connection that `database.migration_config` carries.

The caller owns the transaction: a migration that fails half-way leaves nothing behind.
"""

from __future__ import annotations

from alembic import context

from tightfit_service.adapters.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters tables by copying them
    render_as_batch=True,
)
context.run_migrations()
