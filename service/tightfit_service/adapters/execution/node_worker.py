"""One worker on a node of a cluster: a warm process under the node's eyes, fed and asked from afar.

Knows nothing of the cluster's engine: an engine makes one of these per worker, in a process of its own,
and calls its methods. Bytes come and go in chunks; the node holds no credentials of any store.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tightfit_service import __version__
from tightfit_service.adapters.execution.limits import Confinement
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor, WorkerProgram
from tightfit_service.adapters.execution.messages import Message, error_message
from tightfit_service.adapters.execution.staging import shrink_folder
from tightfit_service.application import tracing
from tightfit_service.application.ports import WorkUnit
from tightfit_service.domain.errors import (
    IntegrityError,
    NotFoundError,
    TightfitError,
    WorkFailedError,
)

_POLL_SECONDS = 10.0
_PAUSE_SECONDS = 0.02
_KILL_SECONDS = 1.2


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """How workers on nodes are run; the same on all nodes.

    Attributes:
        arguments: What a Python interpreter is given to become a worker.
        environment: Further variables of workers.
        folder: Where nodes keep inputs and scratch files; empty for the node's temporary folder.
        cache_bytes: How much of the inputs a node keeps.
        threads: Threads of numeric libraries of one worker.
        confinement: What one worker may use and reach.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    cache_bytes: int
    threads: int
    confinement: Confinement


class NodeWorker:
    """Runs units one at a time for a service that is elsewhere. All methods share one event loop.

    What goes wrong in the domain is returned as a message of type `error`, not raised, so that it
    arrives whole whatever the engine does with exceptions.
    """

    def __init__(self, options: NodeOptions) -> None:
        base = options.folder or str(Path(tempfile.gettempdir()) / f"tightfit-node-{os.getuid()}")
        self._folders = _NodeFolders(Path(base), options.cache_bytes)
        self._restarts: list[str] = []
        # this process is the worker's own: spans go to the service, which sends them on
        self._tracer = tracing.RecordingTracer()
        tracing.use_tracer(self._tracer)
        self._runs: dict[str, _Run] = {}
        caches = self._folders.own / "caches"
        caches.mkdir()
        user = options.confinement.find_user()
        if user is not None:
            for folder in (Path(base), Path(base) / "slots", self._folders.own):
                folder.chmod(0o711)
            user.own(caches)
        self._executor = LocalProcessExecutor(
            program=WorkerProgram(
                command=[sys.executable, *options.arguments],
                environment={**options.environment, "TIGHTFIT_DATA_DIR": str(caches)},
                threads=options.threads,
            ),
            artifacts=self._folders,
            scratch_dir=self._folders.own / "scratch",
            telemetry=_Restarts(self._restarts),
            worker_count=1,
            confinement=options.confinement,
            # the folder keeps inputs for all workers of the node; linking from it costs nothing
            input_cache_bytes=0,
        )

    async def start(self) -> Message:
        """Start the process; return the version that runs here, or an error."""
        try:
            await self._executor.start()
        except TightfitError as error:
            return error_message(error)
        return {"type": "started", "version": __version__, "pid": os.getpid()}

    async def holds(self, run_id: str, project: str, digest: str) -> bool:
        """Whether an input is on this node; it stays until the run is closed."""
        return await asyncio.to_thread(self._folders.pin, run_id, project, digest)

    async def receive(
        self, run_id: str, project: str, digest: str, chunk: bytes, *, is_last: bool
    ) -> Message | None:
        """Take the next chunk of an input; the last one completes it."""
        try:
            await asyncio.to_thread(
                self._folders.append, run_id, project, digest, chunk, is_last=is_last
            )
        except TightfitError as error:
            return error_message(error)
        return None

    async def begin(self, run_id: str, unit: WorkUnit) -> None:
        """Begin a unit whose inputs are here; `next` tells how it goes."""
        run = _Run()
        self._runs[run_id] = run
        self._folders.current = run_id
        run.task = asyncio.create_task(self._run(run, unit))

    async def next(self, run_id: str) -> list[Message]:
        """Return what happened since the last call, waiting for it for a while; the end comes last."""
        run = self._runs.get(run_id)
        if run is None:
            return [{"type": "unknown"}]
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await run.has_news.wait()
        # progress often comes in bursts, which travel together
        if not (run.task is None or run.task.done()):
            await asyncio.sleep(_PAUSE_SECONDS)
        run.has_news.clear()
        news, run.news = run.news, []
        restarts = [{"type": "restart", "reason": reason} for reason in self._restarts]
        self._restarts.clear()
        return restarts + news

    async def read(self, digest: str, offset: int, size: int) -> bytes:
        """Return a part of an output."""
        return await asyncio.to_thread(self._folders.read, digest, offset, size)

    async def close(self, run_id: str) -> None:
        """Kill the unit if it still runs, and let go of its files."""
        run = self._runs.pop(run_id, None)
        if run is not None and run.task is not None and not run.task.done():
            run.task.cancel()
            await asyncio.wait([run.task], timeout=_KILL_SECONDS)
        await asyncio.to_thread(self._folders.unpin, run_id)

    async def stop(self) -> None:
        """Kill the process and remove this worker's folder."""
        await self._executor.stop()
        await asyncio.to_thread(self._folders.remove)

    async def _run(self, run: _Run, unit: WorkUnit) -> None:
        def on_progress(fraction: float, message: str) -> None:
            run.tell({"type": "progress", "fraction": fraction, "message": message})

        try:
            try:
                result = await self._executor.run(unit, on_progress=on_progress)
            finally:
                if spans := self._tracer.take():
                    run.tell({"type": "spans", "spans": tracing.as_messages(spans)})
        except TightfitError as error:
            run.tell(error_message(error))
        except Exception as error:  # noqa: BLE001  # the border of a node: the service waits for an end
            what = f"{unit.label or unit.kind}: {type(error).__name__}: {error}"
            run.tell(error_message(WorkFailedError(what)))
        else:
            sizes = {
                digest: self._folders.output_size(digest) for digest in result.outputs.values()
            }
            run.tell(
                {
                    "type": "result",
                    "payload": dict(result.payload),
                    "outputs": dict(result.outputs),
                    "sizes": sizes,
                }
            )


class _Run:
    """What a unit has to tell."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.news: list[Message] = []
        self.has_news = asyncio.Event()

    def tell(self, message: Message) -> None:
        self.news.append(message)
        self.has_news.set()


class _Restarts:
    """Collects the reasons why the process was replaced."""

    def __init__(self, reasons: list[str]) -> None:
        self._reasons = reasons

    def worker_restarted(self, reason: str) -> None:
        self._reasons.append(reason)


class _NodeFolders:
    """Inputs that all workers of a node share, and the files of one worker.

    `inputs` holds whole files by project and digest; `slots/ID` belongs to one worker, which holds the
    lock in it while it lives, so that the next one can clear away what a killed one left.
    """

    def __init__(self, base: Path, cache_bytes: int) -> None:
        self._shared = base / "inputs"
        self._cache_bytes = cache_bytes
        self.current = ""
        self._shared.mkdir(parents=True, exist_ok=True, mode=0o700)
        slots = base / "slots"
        slots.mkdir(exist_ok=True)
        self.own = slots / uuid.uuid4().hex
        self.own.mkdir()
        self._lock = _locked(self.own / "lock")
        for slot in slots.iterdir():
            if slot != self.own:
                _clear_if_left(slot)
        self._pins = self.own / "pins"
        self._outputs = self.own / "outputs"
        for folder in (self._pins, self._outputs):
            folder.mkdir(mode=0o700)

    def of(self, project: str) -> _ProjectFiles:
        """Return the files of a project as the executor wants them."""
        return _ProjectFiles(self, project)

    def pin(self, run_id: str, project: str, digest: str) -> bool:
        pinned = self.pinned(run_id, project, digest)
        pinned.parent.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            try:
                os.link(self._shared / pinned.name, pinned)
            except FileNotFoundError:
                return False
            os.utime(pinned)
        return True

    def append(
        self, run_id: str, project: str, digest: str, chunk: bytes, *, is_last: bool
    ) -> None:
        pinned = self.pinned(run_id, project, digest)
        partial = pinned.with_suffix(".partial")
        with partial.open("ab") as opened:
            opened.write(chunk)
        if not is_last:
            return
        with partial.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise IntegrityError(
                    f"what is stored as {digest} is something else", remedy="upload it again"
                )
        partial.chmod(0o444)
        partial.rename(pinned)
        with suppress(FileExistsError):
            os.link(pinned, self._shared / pinned.name)
        shrink_folder(self._shared, self._cache_bytes)

    def unpin(self, run_id: str) -> None:
        shutil.rmtree(self._pins / run_id, ignore_errors=True)
        for output in self._outputs.iterdir():
            output.unlink(missing_ok=True)

    def pinned(self, run_id: str, project: str, digest: str) -> Path:
        return self._pins / run_id / f"{project}-{digest}"

    def output(self, digest: str) -> Path:
        return self._outputs / digest

    def output_size(self, digest: str) -> int:
        return self.output(digest).stat().st_size

    def read(self, digest: str, offset: int, size: int) -> bytes:
        with self.output(digest).open("rb") as opened:
            opened.seek(offset)
            return opened.read(size)

    def remove(self) -> None:
        shutil.rmtree(self.own, ignore_errors=True)
        self._lock.close()


@dataclass(frozen=True)
class _ProjectFiles:
    """Implements `staging.UnitFiles` for one project over what the service sent."""

    folders: _NodeFolders
    project: str

    def fetch(self, digest: str, destination: Path) -> None:
        pinned = self.folders.pinned(self.folders.current, self.project, digest)
        try:
            os.link(pinned, destination)
        except FileNotFoundError as error:
            raise NotFoundError(f"the input {digest} was not sent") from error

    def put(self, source: Path, digest: str) -> None:
        kept = self.folders.output(digest)
        with suppress(FileExistsError):
            os.link(source, kept)


def _locked(path: Path) -> TextIO:
    opened = path.open("w")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        opened.close()
        raise
    return opened


def _clear_if_left(slot: Path) -> None:
    """Remove the folder of a worker that is gone: its lock is free."""
    try:
        with _locked(slot / "lock"):
            shutil.rmtree(slot, ignore_errors=True)
    except OSError:
        return
