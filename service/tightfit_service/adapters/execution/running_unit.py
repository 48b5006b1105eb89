"""The folder of a unit that runs, prepared and cleared in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tightfit_service.adapters.execution.staging import Staging, UnitFolder
from tightfit_service.application.ports import WorkUnit

T = TypeVar("T")


def stored_outputs(
    staging: Staging, folder: UnitFolder, outputs: Mapping[str, str]
) -> tuple[Mapping[str, str], Mapping[str, int]]:
    """Store outputs (name to path); return their digests by name and their bytes by digest."""
    digests = staging.collect(folder, outputs)
    return digests, {digests[name]: Path(path).stat().st_size for name, path in outputs.items()}


class RunningUnit:
    """The folder of a unit, whose steps run in threads that a cancellation cannot stop."""

    def __init__(self, staging: Staging, unit: WorkUnit) -> None:
        self._staging = staging
        self._unit = unit
        self._steps: list[asyncio.Future[Any]] = []
        self._folder: UnitFolder | None = None

    async def open(self) -> UnitFolder:
        """Fetch the inputs."""
        return await self._step(self._open)

    async def collect(
        self, outputs: Mapping[str, str]
    ) -> tuple[Mapping[str, str], Mapping[str, int]]:
        """Store the outputs (name to path); return their digests by name and their bytes by digest."""
        folder = self._folder
        assert folder is not None
        return await self._step(lambda: stored_outputs(self._staging, folder, outputs))

    async def close(self) -> None:
        """Remove the folder once the last step has ended."""
        if self._steps:
            await asyncio.wait(self._steps)
        for step in self._steps:
            # looked at here, so that a failure after a cancellation is not reported as forgotten
            if not step.cancelled():
                step.exception()
        if self._folder is not None:
            await asyncio.to_thread(self._staging.close_unit, self._folder)

    def _open(self) -> UnitFolder:
        self._folder = self._staging.open_unit(self._unit.project, self._unit.inputs)
        return self._folder

    async def _step(self, work: Callable[[], T]) -> T:
        step = asyncio.ensure_future(asyncio.to_thread(work))
        self._steps.append(step)
        return await asyncio.shield(step)
