"""SQLite databases with the schema of today: migrated once for all tests of a process, and copied from then on."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from sqlalchemy import Engine

from tightfit_service.adapters.storage.database import open_database, upgrade


def open_migrated(path: Path) -> Engine:
    """Return an engine for a new database at a path, as all migrations leave one; the caller disposes of it."""
    path.write_bytes(_migrated())
    return open_database(f"sqlite:///{path}")


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db"
        engine = open_database(f"sqlite:///{path}")
        upgrade(engine)
        # the last connection that closes moves what is in the log into the file
        engine.dispose()
        return path.read_bytes()
