"""An executor whose workers come, and whose units end, when a test says so."""

from __future__ import annotations

import asyncio

from tightfit_service.application.ports import (
    BeginCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)


class HeldExecutor:
    """Implements `Executor`."""

    def __init__(self) -> None:
        self.worker = asyncio.Event()
        self.asked = 0
        self.runs: list[asyncio.Future[WorkResult]] = []
        self.tells: list[ProgressCallback] = []

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        del unit
        self.asked += 1
        await self.worker.wait()
        await on_begin()
        end: asyncio.Future[WorkResult] = asyncio.get_running_loop().create_future()
        self.runs.append(end)
        self.tells.append(on_progress)
        return await end

    async def check(self) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
