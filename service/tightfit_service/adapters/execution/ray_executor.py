"""Runs units of work on the nodes of a Ray cluster, each in a process that its node can kill."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import structlog

from tightfit_service import __version__
from tightfit_service.adapters.execution.background import BackgroundTasks
from tightfit_service.adapters.execution.failures import not_running
from tightfit_service.adapters.execution.local_processes import RestartReports
from tightfit_service.adapters.execution.messages import Message, error_from
from tightfit_service.adapters.execution.node_worker import NodeOptions
from tightfit_service.adapters.execution.ray_link import RayLink, RayNodeWorker
from tightfit_service.application import tracing
from tightfit_service.application.ports import (
    ArtifactStores,
    BeginCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.domain.errors import (
    TightfitError,
    UnavailableError,
    WorkerDiedError,
    WorkFailedError,
)

log = structlog.get_logger(__name__)


CHUNK_BYTES = 8 << 20
"""Files travel in pieces of this size, each an object in Ray's store for a moment."""

_PATIENCE_SECONDS = 60.0
_CANCEL_SECONDS = 1.6
_CLOSE_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 15.0
_SETTLE_SECONDS = 0.01


class _LostError(Exception):
    """A node worker is gone, with the process that Ray ran it in or with its node."""


class _Slot:
    """A node worker that answers."""

    def __init__(self, actor: Any, node: str, generation: int) -> None:
        self.actor = actor
        self.node = node
        self.generation = generation
        self.is_lost = False


class RayExecutor:
    """Implements `Executor` with `worker_count` actors, each of which keeps one warm worker process.

    Nodes are given inputs and asked for outputs by the service; they know no store and no secrets. A
    node that is lost costs what ran on it: `run` then raises WorkerDiedError, and the caller, who counts
    the tries, runs the unit again on another node.

    Args:
        link: The connection to the cluster.
        options: How nodes run workers.
        artifacts: Where inputs come from and outputs go.
        scratch_dir: For outputs that arrive; emptied by `start`, used by nobody else.
        telemetry: Told when a worker had to be replaced.
        worker_count: Units that run at the same time.
        gpus_per_unit: Share of a GPU that each worker is given.
    """

    def __init__(
        self,
        *,
        link: RayLink,
        options: NodeOptions,
        artifacts: ArtifactStores,
        scratch_dir: Path,
        telemetry: RestartReports,
        worker_count: int = 1,
        gpus_per_unit: float = 0.0,
    ) -> None:
        self._link = link
        self._options = options
        self._artifacts = artifacts
        self._scratch_dir = scratch_dir
        self._telemetry = telemetry
        self._worker_count = worker_count
        self._gpus_per_unit = gpus_per_unit
        self._free: asyncio.Queue[_Slot] = asyncio.Queue()
        self._slots: set[_Slot] = set()
        self._makers: set[asyncio.Task[None]] = set()
        self._background = BackgroundTasks()
        self._sending: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = (
            WeakValueDictionary()
        )
        self._stopped = asyncio.Event()
        self._trouble = ""
        self._active = 0
        self._is_running = False

    async def start(self) -> None:
        """See `Executor`. Returns before workers are ready; `run` waits for them.

        Raises:
            UnavailableError: The cluster cannot be reached.
        """
        await asyncio.to_thread(shutil.rmtree, self._scratch_dir, ignore_errors=True)
        await asyncio.to_thread(self._scratch_dir.mkdir, parents=True)
        await self._link.connect()
        self._free = asyncio.Queue()
        self._stopped = asyncio.Event()
        self._trouble = "no worker has started yet"
        self._is_running = True
        for _ in range(self._worker_count):
            self._make_slot()

    async def stop(self) -> None:
        """See `Executor`. Units that still run end with an UnavailableError."""
        self._is_running = False
        self._stopped.set()
        for maker in self._makers:
            maker.cancel()
        while self._active or self._makers or self._background:  # noqa: ASYNC110  # of three kinds
            await asyncio.sleep(_SETTLE_SECONDS)
        slots, self._slots = self._slots, set()
        await asyncio.gather(*(self._dismiss(slot) for slot in slots))
        await self._link.disconnect()

    async def check(self) -> None:
        """See `Executor`."""
        if not self._is_running:
            raise not_running()
        nodes = await self._link.nodes()
        if not self._slots:
            resources = self._resources()
            raise UnavailableError(
                f"none of {len(nodes)} Ray nodes runs a worker: {self._trouble}",
                field="executor",
                remedy=f"each worker asks for {resources['num_cpus']} CPUs, {resources['num_gpus']} GPUs "
                f"and {resources['memory'] >> 20} MiB of memory: add nodes that have that",
            )

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        """See `Executor`. The time limit counts from when a worker has the unit.

        Raises:
            UnavailableError: The executor is not running, or no worker can be started.
            NotFoundError: An input is not stored.
        """
        slot = await self._take_slot()
        run_id = uuid.uuid4().hex
        work = asyncio.ensure_future(self._run_on(slot, run_id, unit, on_progress, on_begin))
        stopped = asyncio.ensure_future(self._stopped.wait())
        self._active += 1
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise not_running()
            return await work
        except _LostError as error:
            slot.is_lost = True
            self._telemetry.worker_restarted("node_lost")
            raise WorkerDiedError(
                f"{unit.label or unit.kind}: its node {slot.node} was lost ({error})"
            ) from error
        finally:
            self._active -= 1
            stopped.cancel()
            is_unfinished = not work.done()
            work.cancel()
            ending = self._background.start(self._end(slot, run_id, is_unfinished=is_unfinished))
            if is_unfinished:
                # cancelled: a second cancellation ends this wait, not the kill
                await asyncio.wait([ending], timeout=_CANCEL_SECONDS)

    async def _run_on(
        self,
        slot: _Slot,
        run_id: str,
        unit: WorkUnit,
        on_progress: ProgressCallback,
        on_begin: BeginCallback,
    ) -> WorkResult:
        for digest in set(unit.inputs.values()):
            await self._provide(slot, run_id, unit.project, digest)
        await on_begin()
        await self._call(slot, "begin", run_id, unit)
        while True:
            for message in await self._call(slot, "next", run_id):
                kind = message["type"]
                if kind == "progress":
                    on_progress(message["fraction"], message["message"])
                elif kind == "restart":
                    self._telemetry.worker_restarted(message["reason"])
                elif kind == "spans":
                    tracing.adopt(message["spans"])
                elif kind == "error":
                    raise error_from(message)
                elif kind == "result":
                    return await self._collect(slot, unit.project, message)
                else:
                    raise _LostError("it does not know the unit any more")

    async def _provide(self, slot: _Slot, run_id: str, project: str, digest: str) -> None:
        """Have an input on the slot's node; units that want it there at the same time send it once."""
        key = (slot.node, project, digest)
        lock = self._sending.setdefault(key, asyncio.Lock())
        async with lock:
            if await self._call(slot, "holds", run_id, project, digest):
                return
            store = self._artifacts.of(project)
            chunks = await asyncio.to_thread(store.read, digest, chunk_bytes=CHUNK_BYTES)
            chunk = await asyncio.to_thread(next, chunks, b"")
            is_last = False
            while not is_last:
                following = await asyncio.to_thread(next, chunks, None)
                is_last = following is None
                piece = await self._put(chunk)
                answer: Message | None = await self._call(
                    slot, "receive", run_id, project, digest, piece, is_last=is_last
                )
                if answer is not None:
                    raise error_from(answer)
                chunk = following or b""

    async def _collect(self, slot: _Slot, project: str, message: Message) -> WorkResult:
        """Fetch and store the outputs of a unit."""
        artifacts = self._artifacts.of(project)
        for digest, size in message["sizes"].items():
            arriving = self._scratch_dir / uuid.uuid4().hex
            try:
                await self._fetch(slot, digest, size, arriving)
                await asyncio.to_thread(artifacts.put, arriving, digest)
            finally:
                await asyncio.to_thread(arriving.unlink, missing_ok=True)
        return WorkResult(
            payload=message["payload"], outputs=message["outputs"], sizes=message["sizes"]
        )

    async def _fetch(self, slot: _Slot, digest: str, size: int, destination: Path) -> None:
        computed = hashlib.sha256()
        with destination.open("wb") as opened:
            for offset in range(0, size, CHUNK_BYTES):
                chunk = await self._call(slot, "read", digest, offset, CHUNK_BYTES)
                computed.update(chunk)
                await asyncio.to_thread(opened.write, chunk)
        if computed.hexdigest() != digest:
            raise WorkFailedError(
                f"an output of the node {slot.node} changed on its way", remedy="try again"
            )

    async def _call(self, slot: _Slot, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of a slot's actor.

        Raises:
            _LostError: The actor is gone, or the cluster is.
        """
        try:
            return await self._answer(getattr(slot.actor, method).remote(*arguments, **options))
        except (TightfitError, asyncio.CancelledError):
            raise
        except Exception as error:
            slot.is_lost = True
            raise _LostError(_first_line(error)) from error

    async def _put(self, data: bytes) -> Any:
        try:
            return await asyncio.to_thread(self._link.ray.put, data)
        except Exception as error:
            raise _LostError(_first_line(error)) from error

    @staticmethod
    async def _answer(reference: Any) -> Any:
        answer = asyncio.wrap_future(reference.future())
        # looked at here, so that what nobody waits for any more is not reported as forgotten
        answer.add_done_callback(lambda future: future.cancelled() or future.exception())
        # Ray's client breaks off when it has an answer for a future that was cancelled
        return await asyncio.shield(answer)

    async def _take_slot(self) -> _Slot:
        waited = 0.0
        while self._is_running:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    slot = await self._free.get()
                if slot.generation == self._link.generation and not slot.is_lost:
                    return slot
                self._replace(slot)
            waited = 0.0 if self._slots else waited + 1.0
            if waited >= _PATIENCE_SECONDS:
                await self.check()
        raise not_running()

    async def _end(self, slot: _Slot, run_id: str, *, is_unfinished: bool) -> None:
        """Close a unit, kill what runs of it, and give the slot back or replace it."""
        if not slot.is_lost:
            try:
                async with asyncio.timeout(_CANCEL_SECONDS if is_unfinished else _CLOSE_SECONDS):
                    await self._call(slot, "close", run_id)
            except (_LostError, TimeoutError):
                slot.is_lost = True
        if slot.is_lost or not self._is_running:
            self._replace(slot)
        else:
            self._free.put_nowait(slot)

    def _replace(self, slot: _Slot) -> None:
        self._slots.discard(slot)
        self._background.start(self._kill(slot.actor))
        if self._is_running:
            self._make_slot()

    async def _dismiss(self, slot: _Slot) -> None:
        with suppress(_LostError, TimeoutError):
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self._call(slot, "stop")
        await self._kill(slot.actor)

    async def _kill(self, actor: Any) -> None:
        with suppress(Exception):
            await asyncio.to_thread(self._link.ray.kill, actor)

    def _make_slot(self) -> None:
        maker = asyncio.create_task(self._keep_making())
        self._makers.add(maker)
        maker.add_done_callback(self._makers.discard)

    async def _keep_making(self) -> None:
        """Start a node worker, as often as it takes."""
        pause = _RETRY_SECONDS
        while self._is_running:
            try:
                await self._link.connect()
                slot = await self._start_slot()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is told and tried again
                self._trouble = _first_line(error)
                log.warning("ray.worker_not_started", error=self._trouble, again_in_seconds=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
            else:
                self._slots.add(slot)
                self._free.put_nowait(slot)
                return

    async def _start_slot(self) -> _Slot:
        generation = self._link.generation
        ray = self._link.ray
        kind = ray.remote(RayNodeWorker).options(
            scheduling_strategy="SPREAD", max_restarts=0, max_task_retries=0, **self._resources()
        )
        actor = await asyncio.to_thread(kind.remote, self._options)
        try:
            # a cluster without room may grow: this waits as long as that takes
            hello = await self._answer(actor.start.remote())
        except BaseException:
            self._background.start(self._kill(actor))
            raise
        if hello["type"] == "error":
            self._background.start(self._kill(actor))
            raise error_from(hello)
        if hello["version"] != __version__:
            self._background.start(self._kill(actor))
            raise UnavailableError(
                f"node {hello['node']} has version {hello['version']}, the service {__version__}",
                remedy="run service and nodes from the same image",
            )
        return _Slot(actor, hello["node"], generation)

    def _resources(self) -> dict[str, Any]:
        return {
            "num_cpus": self._options.threads,
            "num_gpus": self._gpus_per_unit,
            "memory": self._options.confinement.limits.memory_bytes or 0,
        }


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
