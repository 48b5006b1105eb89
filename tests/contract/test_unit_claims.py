"""Of several servers one has the claim of a unit at a time, until it ends it or is not heard of any more."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from fakes.postgres_server import PostgresServer
from fakes.stores import InMemoryStore, RecordStore
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.schema import unit_claims
from tightfit_service.adapters.storage.sql_results import SqlResultExpiry
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.sql_unit_claims import SqlUnitClaims
from tightfit_service.application.ports import UnitClaims

KEY = ("default", "unit")
LONG = 600.0
OVER = -1.0
"""A claim that has run out as it is made."""


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.debian)])
def both(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[UnitClaims, RecordStore]]:
    """Every implementation, with the store that tells of its claims."""
    if request.param == "memory":
        memory = InMemoryStore()
        yield memory, memory
        return
    if request.param == "postgresql":
        postgres: PostgresServer = request.getfixturevalue("postgres")
        engine = open_database(postgres.database())
    else:
        engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
    yield SqlUnitClaims(engine=engine), SqlStore(engine=engine)
    engine.dispose()


@pytest.fixture
def claims(both: tuple[UnitClaims, RecordStore]) -> UnitClaims:
    return both[0]


@pytest.fixture
def store(both: tuple[UnitClaims, RecordStore]) -> RecordStore:
    return both[1]


def claimant(store: RecordStore) -> str:
    return store.unit_record(*KEY, within_seconds=LONG).claimant


def test_a_unit_is_claimed_by_one(claims: UnitClaims, store: RecordStore) -> None:
    assert claimant(store) == ""
    assert claims.claim_unit(*KEY, "a", seconds=LONG)
    assert not claims.claim_unit(*KEY, "b", seconds=LONG)
    assert claims.claim_unit(*KEY, "a", seconds=LONG)
    assert claimant(store) == "a"
    assert claims.claim_unit("other", "unit", "b", seconds=LONG)
    assert claims.claim_unit("default", "other", "b", seconds=LONG)
    assert claimant(store) == "a"


def test_who_ends_a_claim_lets_the_next_one_have_it(claims: UnitClaims, store: RecordStore) -> None:
    assert claims.claim_unit(*KEY, "a", seconds=LONG)
    claims.end_unit_claim(*KEY, "b")
    assert claimant(store) == "a"
    claims.end_unit_claim(*KEY, "a")
    assert claimant(store) == ""
    assert not claims.renew_unit_claim(*KEY, "a", seconds=LONG)
    assert claims.claim_unit(*KEY, "b", seconds=LONG)


def test_a_claim_that_ran_out_is_the_next_ones(claims: UnitClaims, store: RecordStore) -> None:
    assert claims.claim_unit(*KEY, "a", seconds=OVER)
    assert claimant(store) == ""
    assert claims.claim_unit(*KEY, "b", seconds=LONG)
    assert claimant(store) == "b"
    assert not claims.renew_unit_claim(*KEY, "a", seconds=LONG)
    claims.end_unit_claim(*KEY, "a")
    assert claimant(store) == "b"


def test_a_claim_that_is_renewed_goes_on(claims: UnitClaims, store: RecordStore) -> None:
    assert claims.claim_unit(*KEY, "a", seconds=OVER)
    assert claims.renew_unit_claim(*KEY, "a", seconds=LONG)
    assert claimant(store) == "a"
    assert not claims.claim_unit(*KEY, "b", seconds=LONG)


def test_of_many_at_a_time_one_gets_it(claims: UnitClaims) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: claims.claim_unit(*KEY, f"o{n}", seconds=LONG), range(24)))
    assert found.count(True) == 1


def test_what_dead_servers_left_is_forgotten_with_old_results(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'state.db'}")
    upgrade(engine)
    claims = SqlUnitClaims(engine=engine)
    claims.claim_unit("default", "old", "dead", seconds=-7_200.0)
    claims.claim_unit("default", "new", "alive", seconds=LONG)
    expiry = SqlResultExpiry(engine=engine)
    expiry.expire_results(unused_for=timedelta(hours=1), dry_run=True)
    expiry.expire_results(unused_for=timedelta(hours=3))
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(unit_claims)).scalar() == 2
    expiry.expire_results(unused_for=timedelta(hours=1))
    with engine.connect() as connection:
        assert connection.execute(select(unit_claims.c.owner)).scalars().all() == ["alive"]
    engine.dispose()
