"""Alembic migrations of the record store, applied by `database.upgrade` when the server starts."""
