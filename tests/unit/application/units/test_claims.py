"""What one server computes, the others on its database wait for, as long as it is heard of."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from fakes.held_executor import HeldExecutor
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from fakes.waiting import until
from tightfit_service.application.ports import WorkResult, WorkUnit
from tightfit_service.application.units import cached as units_module
from tightfit_service.application.units.cached import MAX_DEATHS, CachedUnits
from tightfit_service.application.units.claims import UnitClaimer
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.application.units.under_way import UnitsUnderWay
from tightfit_service.domain.errors import UnavailableError, WorkerDiedError, WorkFailedError

UNIT = WorkUnit(project="default", kind="trial", payload={}, inputs={"graph": "a" * 64})
DIGEST = unit_digest(UNIT)
RESULT = WorkResult(payload={"x": 1})
LEASE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units_module, "CLAIM_POLL_SECONDS", 0.01)


class Server:
    """One of several on a database."""

    def __init__(self, name: str, store: InMemoryStore, *, seconds: float = LEASE_SECONDS) -> None:
        self.store = store
        self.executor = HeldExecutor()
        self.telemetry = RecordingTelemetry()
        self.under_way = UnitsUnderWay()
        self.told: list[str] = []
        self._units = CachedUnits(
            executor=self.executor,
            store=store,
            telemetry=self.telemetry,
            claimer=UnitClaimer(claims=store, owner=name, seconds=seconds),
        ).counted_by(self.under_way)

    def want(self) -> asyncio.Task[WorkResult]:
        """Ask for the unit."""
        return asyncio.create_task(
            self._units.run(UNIT, on_progress=lambda _, text: self.told.append(text))
        )

    async def begin(self) -> asyncio.Task[WorkResult]:
        """Ask for the unit, and have it begun."""
        self.executor.worker.set()
        task = self.want()
        await until(lambda: self.executor.runs)
        return task

    async def wait_for_another(self) -> asyncio.Task[WorkResult]:
        """Ask for the unit, and let it be seen that another server has it."""
        self.executor.worker.set()
        task = self.want()
        await until(lambda: self.told)
        return task


async def cancelled(task: asyncio.Task[WorkResult]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_another_server_computes_is_waited_for_without_a_worker() -> None:
    store = InMemoryStore()
    a, b = Server("a", store), Server("b", store)
    first, second = await a.begin(), await b.wait_for_another()
    assert b.told == ["waiting for a, which computes the same"]
    assert b.under_way.only_wait
    assert not a.under_way.only_wait
    a.executor.runs[0].set_result(RESULT)
    assert [await first, await second] == [RESULT, RESULT]
    assert b.executor.asked == 0
    assert b.telemetry.cache_lookups == [True]
    assert b.telemetry.units == []
    assert not b.under_way.only_wait
    assert store.claims == {}


async def test_of_two_that_wait_for_workers_at_a_time_one_gives_its_worker_back() -> None:
    store = InMemoryStore()
    a, b = Server("a", store), Server("b", store)
    tasks = [a.want(), b.want()]
    await until(lambda: a.executor.asked and b.executor.asked)
    for server in (a, b):
        server.executor.worker.set()
    await until(lambda: (a.executor.runs or b.executor.runs) and (a.told or b.told))
    (computing,) = [server for server in (a, b) if server.executor.runs]
    computing.executor.runs[0].set_result(RESULT)
    assert await asyncio.gather(*tasks) == [RESULT, RESULT]
    assert len(a.executor.runs) + len(b.executor.runs) == 1
    assert sorted(a.telemetry.cache_lookups + b.telemetry.cache_lookups) == [False, True]
    assert a.telemetry.units + b.telemetry.units == [("trial", "ok")]


async def test_what_fails_on_one_server_is_run_by_the_next() -> None:
    store = InMemoryStore()
    a, b = Server("a", store), Server("b", store)
    first, second = await a.begin(), await b.wait_for_another()
    a.executor.runs[0].set_exception(WorkFailedError("out of time"))
    with pytest.raises(WorkFailedError):
        await first
    await until(lambda: b.executor.runs)
    b.executor.runs[0].set_result(RESULT)
    assert await second == RESULT


async def test_what_is_cancelled_on_one_server_is_run_by_the_next() -> None:
    store = InMemoryStore()
    a, b = Server("a", store), Server("b", store)
    first, second = await a.begin(), await b.wait_for_another()
    await cancelled(first)
    await until(lambda: b.executor.runs)
    b.executor.runs[0].set_result(RESULT)
    assert await second == RESULT
    assert store.claims == {}


async def test_who_waits_for_another_server_can_be_cancelled_alone() -> None:
    store = InMemoryStore()
    a, b = Server("a", store), Server("b", store)
    first, second = await a.begin(), await b.wait_for_another()
    await cancelled(second)
    assert not b.under_way.only_wait
    a.executor.runs[0].set_result(RESULT)
    assert await first == RESULT


async def test_what_a_dead_server_had_is_run_when_its_claim_has_run_out() -> None:
    store, now = InMemoryStore(), datetime.now(UTC)
    store.clock = lambda: now
    assert store.claim_unit(UNIT.project, DIGEST, "dead", seconds=LEASE_SECONDS)
    server = Server("b", store)
    task = await server.wait_for_another()
    assert server.executor.asked == 0
    store.clock = lambda: now + timedelta(seconds=LEASE_SECONDS + 1)
    await until(lambda: server.executor.runs)
    server.executor.runs[0].set_result(RESULT)
    assert await task == RESULT


async def test_an_earlier_life_of_the_same_server_is_another() -> None:
    store = InMemoryStore()
    assert store.claim_unit(UNIT.project, DIGEST, "b/1", seconds=LEASE_SECONDS)
    server = Server("b/2", store)
    task = await server.wait_for_another()
    await cancelled(task)
    assert list(store.claims) == [(UNIT.project, DIGEST)]


class Counting(InMemoryStore):
    """Counts renewals of claims."""

    renewals = 0

    def renew_unit_claim(
        self, project: str, input_digest: str, owner: str, *, seconds: float
    ) -> bool:
        self.renewals += 1
        return super().renew_unit_claim(project, input_digest, owner, seconds=seconds)


async def test_a_claim_is_renewed_while_its_unit_runs_and_not_after() -> None:
    store = Counting()
    server = Server("a", store, seconds=0.05)
    task = await server.begin()
    await until(lambda: store.renewals >= 3)
    server.executor.runs[0].set_result(RESULT)
    assert await task == RESULT
    assert store.claims == {}
    renewals = store.renewals
    await asyncio.sleep(0.1)
    assert store.renewals == renewals


async def test_a_unit_that_kills_its_workers_stays_with_the_server_that_has_it() -> None:
    store = InMemoryStore()
    a, b = Server("a", store), Server("b", store)
    first, second = await a.begin(), await b.wait_for_another()
    for attempt in range(MAX_DEATHS):
        await until(lambda: len(a.executor.runs) > attempt)  # noqa: B023  # called before the next
        a.executor.runs[attempt].set_exception(WorkerDiedError("SIGSEGV"))
    for task in (first, second):
        with pytest.raises(WorkerDiedError, match=f"given up after {MAX_DEATHS} tries"):
            await task
    assert b.executor.asked == 0


class Claimless(InMemoryStore):
    """Cannot be asked for claims."""

    def claim_unit(self, project: str, input_digest: str, owner: str, *, seconds: float) -> bool:
        raise UnavailableError("the database cannot be reached")


async def test_a_store_that_is_away_keeps_no_worker_from_a_unit() -> None:
    store = Claimless()
    server = Server("a", store)
    task = await server.begin()
    server.executor.runs[0].set_result(RESULT)
    assert await task == RESULT
    assert store.cached_result(UNIT.project, DIGEST) == RESULT


async def test_what_was_stored_while_a_worker_was_waited_for_is_seen_by_who_claims() -> None:
    store = InMemoryStore()
    server = Server("a", store)
    task = server.want()
    await until(lambda: server.executor.asked)
    store.store_result(UNIT.project, DIGEST, RESULT)
    server.executor.worker.set()
    assert await task == RESULT
    assert server.executor.runs == []
    assert store.claims == {}
