"""Units of work whose results are remembered, and units that kill their workers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fakes.stores import InMemoryStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.ports import (
    BeginCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.application.units.cached import DEATHS_SECONDS, MAX_DEATHS, CachedUnits
from tightfit_service.application.units.kinds import unit_digest
from tightfit_service.domain.errors import (
    InvalidModelError,
    UnavailableError,
    WorkerDiedError,
    WorkFailedError,
)

UNIT = WorkUnit(project="default", kind="import_model", payload={}, inputs={"model": "a" * 64})
RESULT = WorkResult(payload={"x": 1})


class ScriptedExecutor:
    """Implements `Executor`: gives or raises one thing after the other."""

    def __init__(self, *script: WorkResult | Exception) -> None:
        self.script = list(script)
        self.run_count = 0

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        await on_begin()
        self.run_count += 1
        outcome = self.script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def check(self) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def deaths(count: int) -> Sequence[Exception]:
    return [WorkerDiedError(f"its process died (SIGSEGV), try {n}") for n in range(1, count + 1)]


async def run(
    executor: ScriptedExecutor, store: InMemoryStore, unit: WorkUnit = UNIT
) -> WorkResult:
    units = CachedUnits(executor=executor, store=store, telemetry=RecordingTelemetry())
    return await units.run(unit)


async def test_a_result_is_remembered() -> None:
    executor, store = ScriptedExecutor(RESULT), InMemoryStore()
    assert await run(executor, store) == RESULT
    assert await run(executor, store) == RESULT
    assert executor.run_count == 1


class AwayStore(InMemoryStore):
    """Cannot take results for so many attempts."""

    def __init__(self, attempts: int) -> None:
        super().__init__()
        self.attempts = attempts

    def store_result(self, project: str, input_digest: str, result: WorkResult) -> None:
        self.attempts -= 1
        if self.attempts >= 0:
            raise UnavailableError("the database cannot be reached")
        super().store_result(project, input_digest, result)


async def test_a_result_outlives_an_outage_of_the_store() -> None:
    executor, store = ScriptedExecutor(RESULT), AwayStore(attempts=2)
    units = CachedUnits(executor=executor, store=store, telemetry=RecordingTelemetry())
    result = await units.run(UNIT, patience_seconds=60.0)
    assert result == RESULT
    assert store.cached_result(UNIT.project, unit_digest(UNIT)) == RESULT
    assert executor.run_count == 1


async def test_a_call_is_not_kept_waiting_for_a_store_that_is_away() -> None:
    with pytest.raises(UnavailableError):
        await run(ScriptedExecutor(RESULT), AwayStore(attempts=1))


async def test_a_unit_survives_the_death_of_its_worker() -> None:
    executor = ScriptedExecutor(*deaths(MAX_DEATHS - 1), RESULT)
    assert await run(executor, InMemoryStore()) == RESULT


async def test_a_unit_that_kills_every_worker_is_given_up_with_the_evidence() -> None:
    executor, store = ScriptedExecutor(*deaths(MAX_DEATHS)), InMemoryStore()
    with pytest.raises(
        WorkerDiedError, match=r"after 3 tries: its process died \(SIGSEGV\), try 3"
    ):
        await run(executor, store)
    # asked for again, it kills nobody
    with pytest.raises(WorkerDiedError, match="try 3"):
        await run(executor, store)
    assert executor.run_count == MAX_DEATHS


async def test_tries_are_counted_across_lives() -> None:
    executor, store = ScriptedExecutor(*deaths(1)), InMemoryStore()
    for _ in range(MAX_DEATHS - 1):
        store.add_unit_death(
            UNIT.project, unit_digest(UNIT), "before the restart", within_seconds=DEATHS_SECONDS
        )
    with pytest.raises(WorkerDiedError, match="try 1"):
        await run(executor, store)
    assert executor.run_count == 1


async def test_other_units_and_projects_are_not_refused() -> None:
    executor, store = ScriptedExecutor(*deaths(MAX_DEATHS), RESULT, RESULT), InMemoryStore()
    with pytest.raises(WorkerDiedError):
        await run(executor, store)
    for project, digest in (("default", "b" * 64), ("other", "a" * 64)):
        unit = WorkUnit(project=project, kind=UNIT.kind, payload={}, inputs={"model": digest})
        assert await run(executor, store, unit) == RESULT


@pytest.mark.parametrize("error", [WorkFailedError("took longer"), InvalidModelError("no model")])
async def test_other_failures_are_neither_repeated_nor_remembered(error: Exception) -> None:
    executor, store = ScriptedExecutor(error, RESULT), InMemoryStore()
    with pytest.raises(type(error)):
        await run(executor, store)
    assert await run(executor, store) == RESULT
