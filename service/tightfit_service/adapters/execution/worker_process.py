"""One worker process as the server sees it: started, spoken to, watched, killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tightfit_service.adapters.execution.limits import WorkerLimits
from tightfit_service.adapters.execution.messages import (
    PARENT_VARIABLE,
    REPLY_VARIABLE,
    Message,
    decode,
    encode,
)
from tightfit_service.adapters.execution.process_tree import (
    cpu_seconds,
    descendants,
    file_bytes,
    kill_all,
    kill_left_behind,
    memory_bytes,
)

_LINE_BYTES = 1 << 28
_LOG_BYTES = 1 << 16
_TAIL_CHARS = 2_000
_LOG_GRACE_SECONDS = 0.5
_SETTLE_SECONDS = 0.05
_WATCH_SECONDS = 0.25


@dataclass
class Usage:
    """What a unit of work has used so far: the most memory and disk at a time, all processor time."""

    memory_bytes: int = 0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0


class WorkerProcess:
    """A child in a session of its own. All methods belong to the event loop that started it.

    Attributes:
        directory: Where it runs, and its temporary files lie.
        kill_reason: Why the server killed it (`killed`, `timeout`, `memory`, ...), or "" while it did not.
        isolation: What cuts it off from the network, as it said itself; known once it is ready.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        replies: asyncio.StreamReader,
        reply_pipe: asyncio.BaseTransport,
        directory: Path,
    ) -> None:
        self.directory = directory
        self.kill_reason = ""
        self.isolation = ""
        self.units_done = 0
        self._process = process
        self._replies = replies
        self._reply_pipe = reply_pipe
        self._log: deque[bytes] = deque()
        self._log_bytes = 0
        self._log_reader = asyncio.create_task(self._read_log())
        self._exit = asyncio.create_task(self._wait_exit())
        self._is_ready = False

    @classmethod
    async def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], directory: Path
    ) -> WorkerProcess:
        """Start a child; it is not ready yet.

        Raises:
            OSError: The command cannot be run.
        """
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(write_end,),
                start_new_session=True,
                cwd=directory,
                env={
                    **environment,
                    REPLY_VARIABLE: str(write_end),
                    PARENT_VARIABLE: str(os.getpid()),
                },
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        replies = asyncio.StreamReader(limit=_LINE_BYTES)
        reply_pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(replies), os.fdopen(read_end, "rb", buffering=0)
        )
        return cls(process, replies, reply_pipe, directory)

    @property
    def pid(self) -> int:
        """Process id, also the id of its group and session."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs and nobody killed it."""
        return self._process.returncode is None and not self.kill_reason

    async def wait_ready(self) -> bool:
        """Wait for its first word; False when it ended without one."""
        if not self._is_ready:
            hello = await self.receive()
            self._is_ready = hello is not None
            self.isolation = (hello or {}).get("isolation", "")
        return self._is_ready

    async def send(self, message: Message) -> None:
        """Send a message; a worker that is gone is noticed by `receive`."""
        self._forget_log()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(encode(message))
            await self._process.stdin.drain()

    async def receive(self) -> Message | None:
        """Return the next message, or None when the worker has ended."""
        try:
            line = await self._replies.readline()
            return decode(line) if line.endswith(b"\n") else None
        except (ValueError, TypeError):
            # a line beyond all bounds, or no message: whoever writes that is beyond help
            self.kill("crashed")
            return None

    def kill(self, reason: str) -> None:
        """Kill it with all its children, at once; the first reason given is kept."""
        self.kill_reason = self.kill_reason or reason
        if self._process.returncode is None:
            kill_all(self.pid)

    async def wait_gone(self) -> None:
        """Wait until it has been reaped and its pipes are closed."""
        await asyncio.shield(self._exit)

    async def ending(self) -> str:
        """Wait for the end and return how it came, such as `SIGSEGV` or `exit status 3`."""
        await self.wait_gone()
        code = self._process.returncode
        if code is not None and code < 0:
            with suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit status {code}"

    async def log_tail(self) -> str:
        """Return the last lines of what the current unit printed."""
        if self.is_alive:
            # what it printed before its answer is in the pipe already; let the event loop read it
            await asyncio.sleep(_SETTLE_SECONDS)
        text = b"".join(self._log).decode(errors="replace").strip()
        return text[-_TAIL_CHARS:]

    async def watch(self, limits: WorkerLimits, usage: Usage, folders: Sequence[Path]) -> None:
        """Kill it when it and its children use more than the limits; runs until cancelled.

        The reason is then `memory`, `cpu` or `disk`.

        Args:
            limits: What is allowed from now on.
            usage: Kept up to date.
            folders: Whose files count.
        """
        before = await asyncio.to_thread(lambda: cpu_seconds(descendants(self.pid)))
        while True:
            await asyncio.to_thread(self._measure, usage, before, folders)
            for reason, used, limit in (
                ("memory", usage.memory_bytes, limits.memory_bytes),
                ("cpu", usage.cpu_seconds, limits.cpu_seconds),
                ("disk", usage.disk_bytes, limits.disk_bytes),
            ):
                if limit is not None and used > limit:
                    self.kill(reason)
                    return
            await asyncio.sleep(_WATCH_SECONDS)

    def _measure(self, usage: Usage, cpu_before: float, folders: Sequence[Path]) -> None:
        pids = descendants(self.pid)
        usage.memory_bytes = max(usage.memory_bytes, memory_bytes(pids))
        usage.cpu_seconds = max(usage.cpu_seconds, cpu_seconds(pids) - cpu_before)
        usage.disk_bytes = max(usage.disk_bytes, file_bytes(folders))

    async def _wait_exit(self) -> None:
        await self._process.wait()
        # children that outlive a crashed worker would hold its pipes open, and its memory
        kill_left_behind(self.pid)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOG_GRACE_SECONDS):
                await self._log_reader
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._reply_pipe.close()

    async def _read_log(self) -> None:
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(1 << 14):
            self._log.append(chunk)
            self._log_bytes += len(chunk)
            while self._log_bytes > _LOG_BYTES:
                self._log_bytes -= len(self._log.popleft())

    def _forget_log(self) -> None:
        self._log.clear()
        self._log_bytes = 0
