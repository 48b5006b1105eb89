"""Runs units of work in warm worker processes of this machine, each of which can be killed."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from tightfit_service.adapters.execution.environment import worker_environment
from tightfit_service.adapters.execution.guard import Guard
from tightfit_service.adapters.execution.messages import Message, error_from
from tightfit_service.adapters.execution.staging import (
    DEFAULT_CACHE_BYTES,
    Staging,
    UnitFolder,
)
from tightfit_service.adapters.execution.worker_process import WorkerProcess
from tightfit_service.application.ports import (
    ArtifactStores,
    ProgressCallback,
    Telemetry,
    WorkResult,
    WorkUnit,
)
from tightfit_service.domain.errors import (
    TightfitError,
    UnavailableError,
    WorkFailedError,
)

T = TypeVar("T")

_STOPPING = "stopping"
_RECYCLED = "recycled"
_START_SECONDS = 120.0
_KILL_SECONDS = 1.0


class _Slot:
    """A place for one worker; None until one is started, and perhaps one that died."""

    def __init__(self, directory: Path) -> None:
        self.worker: WorkerProcess | None = None
        self.starting: asyncio.Task[WorkerProcess] | None = None
        self.directory = directory


class LocalProcessExecutor:
    """Implements `Executor` with `worker_count` child processes that are reused between units.

    Args:
        command: Program and arguments of a worker; it must call `worker.serve`.
        artifacts: Where inputs come from and outputs go.
        scratch_dir: For running units and cached inputs; emptied by `start`, used by nobody else.
        telemetry: Told when a worker had to be replaced.
        worker_count: Units that run at the same time.
        threads_per_worker: Threads of numeric libraries; None shares the machine's cores evenly.
        memory_limit_bytes: A worker whose processes together hold more is killed; None for no limit.
        units_per_worker: A worker is replaced after so many units, against slow leaks.
        input_cache_bytes: How much of the inputs is kept between units.
        environment: Variables for workers, besides `environment.INHERITED_VARIABLES`.
    """

    def __init__(
        self,
        *,
        command: Sequence[str],
        artifacts: ArtifactStores,
        scratch_dir: Path,
        telemetry: Telemetry,
        worker_count: int = 1,
        threads_per_worker: int | None = None,
        memory_limit_bytes: int | None = None,
        units_per_worker: int = 100,
        input_cache_bytes: int = DEFAULT_CACHE_BYTES,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._telemetry = telemetry
        self._memory_limit_bytes = memory_limit_bytes
        self._units_per_worker = units_per_worker
        self._staging = Staging(
            artifacts=artifacts, root=scratch_dir / "staging", cache_bytes=input_cache_bytes
        )
        threads = threads_per_worker or max(1, (os.cpu_count() or 1) // worker_count)
        self._environment = worker_environment(threads=threads, extra=environment or {})
        self._workers_dir = scratch_dir / "workers"
        self._slots = [_Slot(self._workers_dir / str(n)) for n in range(worker_count)]
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        self._background: set[asyncio.Task[Any]] = set()
        self._guard = Guard()
        self._is_running = False

    async def start(self) -> None:
        """See `Executor`. Returns before the workers are ready; `run` waits for them.

        Raises:
            UnavailableError: A worker cannot be started.
            ResourceExhaustedError: The disk is full.
        """
        await asyncio.to_thread(self._staging.reset)
        await asyncio.to_thread(shutil.rmtree, self._workers_dir, ignore_errors=True)
        self._free = asyncio.LifoQueue()
        self._is_running = True
        for slot in self._slots:
            await self._worker_of(slot)
            self._free.put_nowait(slot)

    async def stop(self) -> None:
        """See `Executor`. Units that still run end with an UnavailableError."""
        self._is_running = False
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        for worker in workers:
            worker.kill(_STOPPING)
        for worker in workers:
            await worker.wait_gone()
        while self._background:
            await asyncio.wait(self._background)
        for slot in self._slots:
            slot.worker = None
        self._guard.stop()

    async def run(self, unit: WorkUnit, *, on_progress: ProgressCallback) -> WorkResult:
        """See `Executor`. The time limit counts from when a worker has the unit.

        Raises:
            UnavailableError: The executor is not running, or workers cannot be started.
            NotFoundError: An input is not stored.
        """
        slot = await self._take_slot()
        job = _RunningUnit(self._staging, unit)
        try:
            return await self._run_in(slot, job, unit, on_progress)
        finally:
            self._in_background(job.close())
            self._give_back(slot)

    async def _run_in(
        self, slot: _Slot, job: _RunningUnit, unit: WorkUnit, on_progress: ProgressCallback
    ) -> WorkResult:
        folder = await job.open()
        worker = await self._ready_worker(slot)
        reply = await self._converse(worker, unit, folder, on_progress)
        if reply is None:
            # it died between two units, perhaps by the kernel's hand; this one was not begun
            worker = await self._ready_worker(slot)
            reply = await self._converse(worker, unit, folder, on_progress)
        if reply is None:
            raise _failed(unit, "two workers died before they began", await worker.log_tail())
        if reply["type"] == "error":
            raise error_from(reply)
        if reply["type"] == "failure":
            # whatever went wrong may have left something behind in the process
            worker.units_done = self._units_per_worker
            raise _failed(
                unit, reply["error"], await worker.log_tail(), is_memory=reply["is_memory"]
            )
        return WorkResult(payload=reply["payload"], outputs=await job.collect(reply["outputs"]))

    async def _take_slot(self) -> _Slot:
        while self._is_running:
            slot = await self._free.get()
            if self._is_running:
                return slot
            # stopped meanwhile: wake the next one that waits
            self._free.put_nowait(slot)
        raise _stopping()

    async def _ready_worker(self, slot: _Slot) -> WorkerProcess:
        if not self._is_running:
            raise _stopping()
        worker = await self._worker_of(slot)
        try:
            async with asyncio.timeout(_START_SECONDS):
                if await worker.wait_ready():
                    return worker
                ending = await worker.ending()
        except TimeoutError:
            worker.kill("timeout")
            ending = f"no answer after {_START_SECONDS:.0f} s"
        if not self._is_running:
            raise _stopping()
        raise UnavailableError(
            f"a worker process does not start: {ending}{_last_output(await worker.log_tail())}",
            remedy="check the installation of the service",
        )

    async def _converse(
        self,
        worker: WorkerProcess,
        unit: WorkUnit,
        folder: UnitFolder,
        on_progress: ProgressCallback,
    ) -> Message | None:
        """Give the unit to the worker and return its final message; None if it died before it began."""
        timer = asyncio.get_running_loop().call_later(unit.timeout_seconds, worker.kill, "timeout")
        memory = _Memory(self._memory_limit_bytes)
        watch = asyncio.create_task(
            worker.watch(memory_limit_bytes=self._memory_limit_bytes, on_pass=memory.note)
        )
        request = {
            "kind": unit.kind,
            "payload": dict(unit.payload),
            "inputs": {name: str(path) for name, path in folder.inputs.items()},
            "output_dir": str(folder.output_dir),
        }
        has_begun = False
        try:
            await worker.send(request)
            while (message := await worker.receive()) is not None:
                has_begun = True
                if message["type"] == "progress":
                    on_progress(message["fraction"], message["message"])
                elif message["type"] != "taken":
                    worker.units_done += 1
                    return message
            ending = await worker.ending()
        except BaseException:
            worker.kill("killed")
            # a second cancellation ends this wait, not the kill
            await asyncio.wait([asyncio.ensure_future(worker.wait_gone())], timeout=_KILL_SECONDS)
            raise
        finally:
            timer.cancel()
            watch.cancel()
        if not has_begun and not worker.kill_reason:
            return None
        raise _died(unit, worker.kill_reason, ending, memory, await worker.log_tail())

    def _give_back(self, slot: _Slot) -> None:
        if slot.worker is not None and slot.worker.units_done >= self._units_per_worker:
            slot.worker.kill(_RECYCLED)
        if slot.worker is not None and slot.worker.is_alive:
            self._free.put_nowait(slot)
        else:
            self._in_background(self._refill(slot))

    async def _refill(self, slot: _Slot) -> None:
        if self._is_running:
            # a worker that cannot be started now is the next unit's trouble, which reports it
            with suppress(UnavailableError):
                await self._worker_of(slot)
        self._free.put_nowait(slot)

    async def _worker_of(self, slot: _Slot) -> WorkerProcess:
        """Return the living worker of a slot, started if there is none; it may not be ready yet."""
        if slot.worker is not None and slot.worker.is_alive:
            return slot.worker
        if slot.starting is None or slot.starting.done():
            slot.starting = self._in_background(self._start_worker(slot))
        # a caller that is cancelled must not leave a half-started process behind
        return await asyncio.shield(slot.starting)

    async def _start_worker(self, slot: _Slot) -> WorkerProcess:
        try:
            await asyncio.to_thread(_empty, slot.directory)
            worker = await WorkerProcess.start(
                self._command,
                environment={**self._environment, "TMPDIR": str(slot.directory)},
                directory=slot.directory,
            )
        except OSError as error:
            raise UnavailableError(
                f"a worker process cannot be started: {error.strerror}",
                remedy="check the installation of the service and the machine's limits",
            ) from error
        if not self._is_running:
            worker.kill(_STOPPING)
        slot.worker = worker
        self._guard.watch(worker.pid)
        self._in_background(self._after_exit(worker))
        return worker

    async def _after_exit(self, worker: WorkerProcess) -> None:
        await worker.wait_gone()
        self._guard.forget(worker.pid)
        reason = worker.kill_reason or "crashed"
        if reason not in {_STOPPING, _RECYCLED}:
            self._telemetry.worker_restarted(reason)

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            # looked at here, so that what nobody waits for any more is not reported as forgotten
            task.exception()


class _RunningUnit:
    """The folder of a unit, whose steps run in threads that a cancellation cannot stop."""

    def __init__(self, staging: Staging, unit: WorkUnit) -> None:
        self._staging = staging
        self._unit = unit
        self._steps: list[asyncio.Future[Any]] = []
        self._folder: UnitFolder | None = None

    async def open(self) -> UnitFolder:
        """Fetch the inputs."""
        return await self._step(self._open)

    async def collect(self, outputs: Mapping[str, str]) -> Mapping[str, str]:
        """Store the outputs."""
        folder = self._folder
        assert folder is not None
        return await self._step(lambda: self._staging.collect(folder, outputs))

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


class _Memory:
    """The largest measurement of a unit's memory, for the error."""

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes or 0
        self.peak_bytes = 0

    def note(self, used_bytes: int) -> None:
        self.peak_bytes = max(self.peak_bytes, used_bytes)


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _died(
    unit: WorkUnit, kill_reason: str, ending: str, memory: _Memory, tail: str
) -> TightfitError:
    if kill_reason == _STOPPING:
        return _stopping()
    if kill_reason == "timeout":
        return _failed(unit, f"took longer than {unit.timeout_seconds:g} s", tail)
    if kill_reason == "memory":
        what = f"held {memory.peak_bytes >> 20} MiB of memory, limit {memory.limit_bytes >> 20} MiB"
        return _failed(unit, what, tail, is_memory=True)
    return _failed(unit, f"its process died ({ending})", tail)


def _stopping() -> UnavailableError:
    return UnavailableError(
        "the executor is not running", remedy="try again when the server has started"
    )


def _failed(unit: WorkUnit, what: str, tail: str, *, is_memory: bool = False) -> WorkFailedError:
    remedy = "use a smaller batch, or allow workers more memory" if is_memory else ""
    return WorkFailedError(f"{unit.label or unit.kind}: {what}{_last_output(tail)}", remedy=remedy)


def _last_output(tail: str) -> str:
    return f"; its last output:\n{tail}" if tail else ""
