"""Several who want the same unit of work at a time, here and on other servers: it is computed once."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from fakes.held_executor import HeldExecutor
from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from fakes.waiting import until
from tightfit_service.application.ports import UnitRecord, WorkResult, WorkUnit
from tightfit_service.application.units import cached as units_module
from tightfit_service.application.units.cached import DEATHS_SECONDS, MAX_DEATHS, CachedUnits
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.application.units.under_way import UnitsUnderWay
from tightfit_service.domain.errors import (
    TightfitError,
    UnavailableError,
    WorkerDiedError,
    WorkFailedError,
)

UNIT = WorkUnit(project="default", kind="trial", payload={}, inputs={"graph": "a" * 64})
DIGEST = unit_digest(UNIT)
RESULT = WorkResult(payload={"x": 1})


class Server:
    """What a server has to run units with."""

    def __init__(self, store: InMemoryStore | None = None) -> None:
        self.store = store or InMemoryStore()
        self.executor = HeldExecutor()
        self.telemetry = RecordingTelemetry()
        self.units = CachedUnits(executor=self.executor, store=self.store, telemetry=self.telemetry)
        self.under_way = UnitsUnderWay()
        """Of the job that asks second."""
        self.told: list[list[str]] = []

    def want(
        self, unit: WorkUnit = UNIT, *, under_way: UnitsUnderWay | None = None
    ) -> asyncio.Task[WorkResult]:
        """Ask for a unit as a job does, each with a share of its own of the server's units."""
        units = self.units.counted_by(under_way or UnitsUnderWay())
        told: list[str] = []
        self.told.append(told)
        return asyncio.create_task(units.run(unit, on_progress=lambda _, text: told.append(text)))

    async def want_two(self) -> tuple[asyncio.Task[WorkResult], asyncio.Task[WorkResult]]:
        """Let two want the unit, of whom the first has begun it and the second waits."""
        self.executor.worker.set()
        first = self.want()
        await until(lambda: self.executor.runs)
        second = self.want(under_way=self.under_way)
        await until(lambda: self.under_way.only_wait)
        return first, second


async def cancelled(task: asyncio.Task[WorkResult]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_two_want_at_a_time_is_computed_once() -> None:
    server = Server()
    first, second = await server.want_two()
    server.executor.runs[0].set_result(RESULT)
    assert [await first, await second] == [RESULT, RESULT]
    assert server.executor.asked == 1
    assert server.telemetry.cache_lookups == [False, True]
    assert server.telemetry.units == [("trial", "ok")]
    assert not server.under_way.only_wait


async def test_a_job_and_a_call_of_the_server_share_what_both_want() -> None:
    server = Server()
    server.executor.worker.set()
    call = asyncio.create_task(server.units.run(UNIT))
    await until(lambda: server.executor.runs)
    job = server.want(under_way=server.under_way)
    await until(lambda: server.under_way.only_wait)
    server.executor.runs[0].set_result(RESULT)
    assert [await call, await job] == [RESULT, RESULT]
    assert server.executor.asked == 1


async def test_all_who_want_a_unit_are_told_of_its_progress() -> None:
    server = Server()
    tasks = await server.want_two()
    server.executor.tells[0](0.5, "epoch 3")
    server.executor.runs[0].set_result(RESULT)
    await asyncio.gather(*tasks)
    assert server.told == [["epoch 3"], ["epoch 3"]]


async def test_who_waits_for_another_asks_for_no_worker_and_can_be_cancelled_alone() -> None:
    server = Server()
    first, second = await server.want_two()
    await cancelled(second)
    assert not server.under_way.only_wait
    server.executor.runs[0].set_result(RESULT)
    assert await first == RESULT
    assert server.executor.asked == 1


async def test_when_the_first_is_cancelled_the_second_has_the_unit_run() -> None:
    server = Server()
    first, second = await server.want_two()
    await cancelled(first)
    await until(lambda: len(server.executor.runs) == 2)
    server.executor.runs[1].set_result(RESULT)
    assert await second == RESULT


async def test_when_the_first_fails_the_second_has_the_unit_run() -> None:
    server = Server()
    first, second = await server.want_two()
    server.executor.runs[0].set_exception(WorkFailedError("out of time"))
    with pytest.raises(WorkFailedError):
        await first
    await until(lambda: len(server.executor.runs) == 2)
    server.executor.runs[1].set_result(RESULT)
    assert await second == RESULT


async def test_who_waited_for_a_unit_that_was_given_up_kills_no_worker_with_it() -> None:
    server = Server()
    first, second = await server.want_two()
    for attempt in range(MAX_DEATHS):
        await until(lambda: len(server.executor.runs) > attempt)  # noqa: B023  # called before the next
        server.executor.runs[attempt].set_exception(WorkerDiedError("SIGSEGV"))
    for task in (first, second):
        with pytest.raises(WorkerDiedError, match=f"given up after {MAX_DEATHS} tries"):
            await task
    assert len(server.executor.runs) == MAX_DEATHS


async def test_projects_share_no_units() -> None:
    server = Server()
    server.executor.worker.set()
    other = WorkUnit(project="other", kind=UNIT.kind, payload={}, inputs=UNIT.inputs)
    tasks = [server.want(), server.want(other)]
    await until(lambda: len(server.executor.runs) == 2)
    for run in server.executor.runs:
        run.set_result(RESULT)
    await asyncio.gather(*tasks)


@pytest.fixture
def long_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every wait for a worker for a long one."""
    monkeypatch.setattr(units_module, "FRESH_SECONDS", 0.0)


@pytest.mark.usefixtures("long_wait")
async def test_what_another_server_stored_during_the_wait_for_a_worker_is_not_run() -> None:
    server = Server()
    task = server.want()
    await until(lambda: server.executor.asked)
    server.store.store_result(UNIT.project, DIGEST, RESULT)
    server.executor.worker.set()
    assert await task == RESULT
    assert server.executor.runs == []
    assert server.telemetry.cache_lookups == [True]
    assert server.telemetry.units == []


@pytest.mark.usefixtures("long_wait")
async def test_what_other_servers_gave_up_during_the_wait_for_a_worker_is_not_run() -> None:
    server = Server()
    task = server.want()
    await until(lambda: server.executor.asked)
    for _ in range(MAX_DEATHS):
        server.store.add_unit_death(
            UNIT.project, DIGEST, "SIGKILL elsewhere", within_seconds=DEATHS_SECONDS
        )
    server.executor.worker.set()
    with pytest.raises(WorkerDiedError, match="SIGKILL elsewhere"):
        await task
    assert server.executor.runs == []
    assert server.telemetry.cache_lookups == [False]


class Forgetful(InMemoryStore):
    """Counts who looks a unit up, and cannot be reached after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def unit_record(self, project: str, input_digest: str, *, within_seconds: float) -> UnitRecord:
        self.looks += 1
        if self.looks > 1:
            raise UnavailableError("the database cannot be reached")
        return super().unit_record(project, input_digest, within_seconds=within_seconds)


@pytest.mark.usefixtures("long_wait")
async def test_a_store_that_is_away_keeps_no_worker_from_a_unit() -> None:
    server = Server(Forgetful())
    server.executor.worker.set()
    task = server.want()
    await until(lambda: server.executor.runs)
    server.executor.runs[0].set_result(RESULT)
    assert await task == RESULT
    assert server.store.cached_result(UNIT.project, DIGEST) == RESULT


async def test_a_worker_that_is_there_at_once_costs_no_second_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units_module, "FRESH_SECONDS", 3_600.0)
    store = Forgetful()
    server = Server(store)
    server.executor.worker.set()
    task = server.want()
    await until(lambda: server.executor.runs)
    server.executor.runs[0].set_result(RESULT)
    await task
    assert store.looks == 1


async def test_a_store_that_cannot_tell_leaves_no_turn_behind() -> None:
    store = InMemoryStore()
    server = Server(store)
    server.executor.worker.set()
    store.is_down = True
    with pytest.raises(TightfitError):
        await server.want()
    store.is_down = False
    task = server.want()
    await until(lambda: server.executor.runs)
    server.executor.runs[0].set_result(RESULT)
    assert await task == RESULT
