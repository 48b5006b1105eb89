"""Runs units of work in warm worker processes of this machine, each of which can be killed."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from tightfit_service.adapters.execution.background import BackgroundTasks
from tightfit_service.adapters.execution.environment import worker_environment
from tightfit_service.adapters.execution.failures import (
    STOPPING,
    died,
    failed,
    last_output,
    not_running,
    out_of_memory,
)
from tightfit_service.adapters.execution.guard import Guard
from tightfit_service.adapters.execution.limits import Confinement, WorkerUser, sandboxed
from tightfit_service.adapters.execution.messages import Message, error_from
from tightfit_service.adapters.execution.running_unit import RunningUnit
from tightfit_service.adapters.execution.staging import (
    DEFAULT_CACHE_BYTES,
    ProjectFiles,
    Staging,
    UnitFolder,
)
from tightfit_service.adapters.execution.worker_log import write_log
from tightfit_service.adapters.execution.worker_process import Usage, WorkerProcess
from tightfit_service.application import tracing
from tightfit_service.application.ports import (
    BeginCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.domain.errors import UnavailableError

log = structlog.get_logger(__name__)


_RECYCLED = "recycled"
_START_SECONDS = 120.0
_KILL_SECONDS = 1.0


class RestartReports(Protocol):
    """The part of `Telemetry` that an executor needs."""

    def worker_restarted(self, reason: str) -> None:
        """Report that a worker process was replaced."""
        ...


class _Slot:
    """A place for one worker; None until one is started, and perhaps one that died."""

    def __init__(self, directory: Path) -> None:
        self.worker: WorkerProcess | None = None
        self.starting: asyncio.Task[WorkerProcess] | None = None
        self.directory = directory


@dataclass(frozen=True, kw_only=True)
class WorkerProgram:
    """What a worker process runs.

    Attributes:
        command: Program and arguments; it must call `worker.serve`.
        environment: Variables for it, besides `environment.INHERITED_VARIABLES`.
        threads: Threads of numeric libraries; None shares the machine's cores evenly among the workers.
        units_per_process: A process is replaced after so many units, against slow leaks.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    units_per_process: int = 100


class LocalProcessExecutor:
    """Implements `Executor` with `worker_count` child processes that are reused between units.

    Args:
        program: What each of them runs.
        artifacts: Where inputs come from and outputs go.
        scratch_dir: For running units and cached inputs; emptied by `start`, used by nobody else.
        telemetry: Told when a worker had to be replaced.
        worker_count: Units that run at the same time.
        confinement: What a worker may use and reach.
        input_cache_bytes: How much of the inputs is kept between units.

    Attributes:
        isolation: What cut the last worker off, such as `namespace,seccomp`; None before there was one.
    """

    def __init__(
        self,
        *,
        program: WorkerProgram,
        artifacts: ProjectFiles,
        scratch_dir: Path,
        telemetry: RestartReports,
        worker_count: int = 1,
        confinement: Confinement | None = None,
        input_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self._program = program
        self._confinement = confinement or Confinement()
        self._user = self._confinement.find_user()
        self._command = sandboxed(program.command, self._confinement)
        self._telemetry = telemetry
        self._staging = Staging(
            artifacts=artifacts,
            root=scratch_dir / "staging",
            cache_bytes=input_cache_bytes,
            owner=self._user,
        )
        threads = program.threads or max(1, (os.cpu_count() or 1) // worker_count)
        self._environment = worker_environment(threads=threads, extra=program.environment)
        self._workers_dir = scratch_dir / "workers"
        self._slots = [_Slot(self._workers_dir / str(n)) for n in range(worker_count)]
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        self._background = BackgroundTasks()
        self._guard = Guard()
        self.isolation: str | None = None
        self._is_running = False

    async def start(self) -> None:
        """See `Executor`. Returns before the workers are ready; `run` waits for them.

        Raises:
            UnavailableError: A worker cannot be started.
            ResourceExhaustedError: The disk is full.
        """
        await asyncio.to_thread(self._staging.reset)
        if self._user is not None:
            await asyncio.to_thread(self._user.check_reachable, self._workers_dir)
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
            worker.kill(STOPPING)
        for worker in workers:
            await worker.wait_gone()
        await self._background.ended()
        for slot in self._slots:
            slot.worker = None
        self._guard.stop()

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
        """See `Executor`. The time limit counts from when a worker has the unit.

        Raises:
            UnavailableError: The executor is not running, or workers cannot be started.
            NotFoundError: An input is not stored.
        """
        slot = await self._take_slot()
        job = RunningUnit(self._staging, unit)
        try:
            return await self._run_in(slot, job, unit, on_progress, on_begin)
        finally:
            self._background.start(job.close())
            self._give_back(slot)

    async def _run_in(
        self,
        slot: _Slot,
        job: RunningUnit,
        unit: WorkUnit,
        on_progress: ProgressCallback,
        on_begin: BeginCallback,
    ) -> WorkResult:
        folder = await job.open()
        worker = await self._ready_worker(slot)
        await on_begin()
        reply = await self._converse(worker, unit, folder, on_progress)
        if reply is None:
            # it died between two units, perhaps by the kernel's hand; this one was not begun
            worker = await self._ready_worker(slot)
            reply = await self._converse(worker, unit, folder, on_progress)
        if reply is None:
            raise failed(unit, "two workers died before they began", await worker.log_tail())
        if reply["type"] == "error":
            raise error_from(reply)
        if reply["type"] == "failure":
            # whatever went wrong may have left something behind in the process
            worker.units_done = self._program.units_per_process
            tell = out_of_memory if reply["is_memory"] else failed
            raise tell(unit, reply["error"], await worker.log_tail())
        digests, sizes = await job.collect(reply["outputs"])
        return WorkResult(payload=reply["payload"], outputs=digests, sizes=sizes)

    async def _take_slot(self) -> _Slot:
        while self._is_running:
            slot = await self._free.get()
            if self._is_running:
                return slot
            # stopped meanwhile: wake the next one that waits
            self._free.put_nowait(slot)
        raise not_running()

    async def _ready_worker(self, slot: _Slot) -> WorkerProcess:
        if not self._is_running:
            raise not_running()
        worker = await self._worker_of(slot)
        try:
            async with asyncio.timeout(_START_SECONDS):
                if await worker.wait_ready():
                    self._note_isolation(worker)
                    return worker
                ending = await worker.ending()
        except TimeoutError:
            worker.kill("timeout")
            ending = f"no answer after {_START_SECONDS:.0f} s"
        if not self._is_running:
            raise not_running()
        raise UnavailableError(
            f"a worker process does not start: {ending}{last_output(await worker.log_tail())}",
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
        usage = Usage()
        watch = asyncio.create_task(
            worker.watch(self._confinement.limits, usage, (folder.output_dir, worker.directory))
        )
        request = {
            "kind": unit.kind,
            "payload": dict(unit.payload),
            "inputs": {name: str(path) for name, path in folder.inputs.items()},
            "output_dir": str(folder.output_dir),
            "trace": unit.trace_parent,
        }
        has_begun = False
        try:
            await worker.send(request)
            while (message := await worker.receive()) is not None:
                has_begun = True
                if message["type"] == "progress":
                    on_progress(message["fraction"], message["message"])
                elif message["type"] == "log":
                    write_log(message, pid=worker.pid)
                elif message["type"] != "taken":
                    worker.units_done += 1
                    tracing.adopt(message.pop("spans", ()))
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
        raise died(
            unit,
            reason=worker.kill_reason,
            ending=ending,
            usage=usage,
            limits=self._confinement.limits,
            tail=await worker.log_tail(),
        )

    def _note_isolation(self, worker: WorkerProcess) -> None:
        if worker.isolation != self.isolation:
            self.isolation = worker.isolation
            held = worker.isolation or "nothing"
            tell = (
                log.info
                if worker.isolation or self._confinement.isolation == "off"
                else log.warning
            )
            tell("workers.isolation", cut_off_by=held, asked=self._confinement.isolation)

    def _give_back(self, slot: _Slot) -> None:
        if slot.worker is not None and slot.worker.units_done >= self._program.units_per_process:
            slot.worker.kill(_RECYCLED)
        if slot.worker is not None and slot.worker.is_alive:
            self._free.put_nowait(slot)
        else:
            self._background.start(self._refill(slot))

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
            slot.starting = self._background.start(self._start_worker(slot))
        # a caller that is cancelled must not leave a half-started process behind
        return await asyncio.shield(slot.starting)

    async def _start_worker(self, slot: _Slot) -> WorkerProcess:
        try:
            await asyncio.to_thread(_empty, slot.directory, self._user)
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
            worker.kill(STOPPING)
        slot.worker = worker
        self._guard.watch(worker.pid)
        self._background.start(self._after_exit(worker))
        return worker

    async def _after_exit(self, worker: WorkerProcess) -> None:
        await worker.wait_gone()
        self._guard.forget(worker.pid)
        reason = worker.kill_reason or "crashed"
        if reason not in {STOPPING, _RECYCLED}:
            self._telemetry.worker_restarted(reason)


def _empty(directory: Path, user: WorkerUser | None) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if user is not None:
        user.own(directory)
