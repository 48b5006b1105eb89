"""The implementations that the contract suites run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.stores import InMemoryStore, RecordStore
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.sql_store import SqlStore


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RecordStore]:
    """Every implementation of the record ports."""
    if request.param == "memory":
        yield InMemoryStore()
        return
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
    sql_store = SqlStore(engine=engine)
    yield sql_store
    sql_store.close()
