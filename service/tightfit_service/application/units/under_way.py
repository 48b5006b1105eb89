"""Which units of work of one job wait for a worker, and which have one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

from tightfit_service.application.ports import (
    BeginCallback,
    Executor,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)


class UnitsUnderWay:
    """Counts a job's units. Lives on one event loop.

    Args:
        before_begin: Awaited before each unit begins.
    """

    def __init__(self, *, before_begin: Callable[[], Awaitable[None]] = begin_at_once) -> None:
        self._before_begin = before_begin
        self._waiting = 0
        self._running = 0

    @property
    def only_wait(self) -> bool:
        """Whether the job does nothing but wait for a worker."""
        return self._waiting > 0 and self._running == 0

    def counted(self, executor: Executor) -> Executor:
        """Return an executor whose units are counted here."""
        return _CountedExecutor(executor, self)

    @contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """Count a unit as one that waits for a worker: another job's has it, and will leave the result."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def run(
        self,
        executor: Executor,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback,
    ) -> WorkResult:
        """Run a unit, and count it meanwhile."""
        has_begun = False

        async def begin() -> None:
            nonlocal has_begun
            has_begun = True
            self._waiting -= 1
            self._running += 1
            await self._before_begin()
            await on_begin()

        self._waiting += 1
        try:
            return await executor.run(unit, on_progress=on_progress, on_begin=begin)
        finally:
            if has_begun:
                self._running -= 1
            else:
                self._waiting -= 1


class _CountedExecutor:
    """Implements `Executor` with another one's workers."""

    def __init__(self, executor: Executor, units: UnitsUnderWay) -> None:
        self._executor = executor
        self._units = units

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        """See `Executor`."""
        return await self._units.run(
            self._executor, unit, on_progress=on_progress, on_begin=on_begin
        )

    async def check(self) -> None:
        """See `Executor`."""
        await self._executor.check()

    async def start(self) -> None:
        """See `Executor`."""
        await self._executor.start()

    async def stop(self) -> None:
        """See `Executor`."""
        await self._executor.stop()
