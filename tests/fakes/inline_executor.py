"""Runs units of work in threads of this process, where a test has nothing to kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from tightfit_service.adapters.execution.failures import not_running
from tightfit_service.adapters.execution.running_unit import stored_outputs
from tightfit_service.adapters.execution.staging import Staging, UnitFolder
from tightfit_service.adapters.execution.worker import disk_full, find_handler
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    ArtifactStores,
    BeginCallback,
    ProgressCallback,
    WorkHandler,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.domain.errors import TightfitError, WorkFailedError


class InlineExecutor:
    """Implements `Executor` without processes.

    A handler that is cancelled or out of time cannot be killed: the caller goes on at once, the
    thread runs to its end, and its result is dropped.

    Args:
        handlers: Kind of unit to what runs it.
        scratch_dir: For running units; emptied by `start`, used by nobody else.
    """

    def __init__(
        self,
        *,
        handlers: Mapping[str, WorkHandler],
        artifacts: ArtifactStores,
        scratch_dir: Path,
        worker_count: int = 1,
    ) -> None:
        self._handlers = handlers
        self._staging = Staging(artifacts=artifacts, root=scratch_dir)
        self._slots = asyncio.Semaphore(worker_count)
        self._is_running = False

    async def start(self) -> None:
        """See `Executor`."""
        await asyncio.to_thread(self._staging.reset)
        self._is_running = True

    async def stop(self) -> None:
        """See `Executor`. Does not wait for handlers."""
        self._is_running = False

    async def check(self) -> None:
        """See `Executor`."""
        if not self._is_running:
            raise not_running()

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        """See `Executor`."""
        loop = asyncio.get_running_loop()

        def report(fraction: float, message: str) -> None:
            loop.call_soon_threadsafe(on_progress, fraction, message)

        async with self._slots:
            if not self._is_running:
                raise not_running()
            await on_begin()
            try:
                async with asyncio.timeout(unit.timeout_seconds):
                    return await asyncio.to_thread(self._run, unit, report)
            except TimeoutError as error:
                raise WorkFailedError(
                    f"{unit.label or unit.kind}: took longer than {unit.timeout_seconds:g} s"
                ) from error

    def _run(self, unit: WorkUnit, report: ProgressCallback) -> WorkResult:
        folder = self._staging.open_unit(unit.project, unit.inputs)
        try:
            return self._run_in(folder, unit, report)
        except TightfitError:
            raise
        except Exception as error:
            if (full := disk_full(error)) is not None:
                raise full from error
            raise WorkFailedError(
                f"{unit.label or unit.kind}: {type(error).__name__}: {error}"
            ) from error
        finally:
            self._staging.close_unit(folder)

    def _run_in(self, folder: UnitFolder, unit: WorkUnit, report: ProgressCallback) -> WorkResult:
        handler = find_handler(self._handlers, unit.kind)
        # through JSON both ways, as a real worker would get and give it
        payload, outputs = handler(
            json.loads(json.dumps(dict(unit.payload))), folder.inputs, folder.output_dir, report
        )
        paths = {name: str(path) for name, path in outputs.items()}
        digests, sizes = stored_outputs(self._staging, folder, paths)
        answer = json.loads(json.dumps(to_plain(payload)))
        return WorkResult(payload=answer, outputs=digests, sizes=sizes)
