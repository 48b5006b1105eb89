"""A server calls itself ready while its database and its store answer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.operations.readiness import PATIENCE, Readiness
from tightfit_service.application.ports.diagnosis import QueueView, SchemaView
from tightfit_service.domain.errors import UnavailableError
from tightfit_service.domain.job import JobState

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class _Database:
    """Implements `DatabaseProbe`."""

    def __init__(self) -> None:
        self.is_up = True

    def queue(self) -> QueueView:
        if not self.is_up:
            raise UnavailableError("the database is away")
        return QueueView(
            counts={JobState.QUEUED: 2},
            oldest_create_time=NOW - timedelta(seconds=90),
            now=NOW,
        )

    def schema(self) -> SchemaView:
        return SchemaView(present="r1", expected="r1")

    def describe(self) -> str:
        return "SQLite"


class _Store:
    def __init__(self) -> None:
        self.is_up = True

    def check(self) -> None:
        if not self.is_up:
            raise UnavailableError("the store is away")


class _Told:
    def __init__(self) -> None:
        self.changes: list[bool] = []

    async def __call__(self, *, is_ready: bool) -> None:
        self.changes.append(is_ready)


@pytest.fixture
def parts() -> tuple[_Database, _Store, RecordingTelemetry]:
    return _Database(), _Store(), RecordingTelemetry()


async def test_the_queue_and_the_dependencies_are_reported(
    parts: tuple[_Database, _Store, RecordingTelemetry],
) -> None:
    database, store, telemetry = parts
    readiness = Readiness(database=database, artifacts=store, telemetry=telemetry)  # type: ignore[arg-type]  # one method of the stores

    await readiness.check(_Told())

    assert telemetry.queues == [({JobState.QUEUED: 2}, 90.0)]
    assert sorted(telemetry.dependencies) == [("artifacts", True), ("database", True)]


@pytest.mark.parametrize("broken", ["database", "store"])
async def test_only_a_failure_that_lasts_makes_it_not_ready(
    parts: tuple[_Database, _Store, RecordingTelemetry], broken: str
) -> None:
    database, store, telemetry = parts
    part = database if broken == "database" else store
    told = _Told()
    readiness = Readiness(database=database, artifacts=store, telemetry=telemetry)  # type: ignore[arg-type]  # one method of the stores

    part.is_up = False
    for _ in range(PATIENCE - 1):
        await readiness.check(told)
    part.is_up = True
    await readiness.check(told)
    assert told.changes == []

    part.is_up = False
    for _ in range(PATIENCE + 2):
        await readiness.check(told)
    assert told.changes == [False]
    assert not readiness.is_ready

    part.is_up = True
    await readiness.check(told)
    assert told.changes == [False, True]


async def test_it_checks_until_it_is_stopped(
    parts: tuple[_Database, _Store, RecordingTelemetry],
) -> None:
    database, store, telemetry = parts
    readiness = Readiness(
        database=database,
        artifacts=store,  # type: ignore[arg-type]  # one method of the stores
        telemetry=telemetry,
        period_seconds=0.0,
    )

    await readiness.start(_Told())
    while len(telemetry.queues) < 3:
        await _turn()
    await readiness.stop()
    seen = len(telemetry.queues)
    await _turn()
    assert len(telemetry.queues) == seen


async def _turn() -> None:
    await asyncio.sleep(0.01)
