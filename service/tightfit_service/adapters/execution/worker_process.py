"""One worker process as the server sees it: started, spoken to, watched, killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tightfit_service.adapters.execution.messages import (
    PARENT_VARIABLE,
    REPLY_VARIABLE,
    Message,
    decode,
    encode,
)
from tightfit_service.adapters.execution.process_tree import (
    kill_all,
    kill_left_behind,
    members,
    memory_bytes,
)

_LINE_BYTES = 1 << 28
_LOG_BYTES = 1 << 16
_TAIL_CHARS = 2_000
_LOG_GRACE_SECONDS = 0.5
_SETTLE_SECONDS = 0.05
_WATCH_SECONDS = 0.25


class WorkerProcess:
    """A child in a session of its own. All methods belong to the event loop that started it.

    Attributes:
        kill_reason: Why the server killed it (`killed`, `timeout`, `memory`, ...), or "" while it did not.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        replies: asyncio.StreamReader,
        reply_pipe: asyncio.BaseTransport,
    ) -> None:
        self.kill_reason = ""
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
        return cls(process, replies, reply_pipe)

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
            self._is_ready = await self.receive() is not None
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

    async def watch(
        self, *, memory_limit_bytes: int | None, on_pass: Callable[[int], None]
    ) -> None:
        """Kill it with reason `memory` when it and its children hold more than the limit.

        `on_pass` gets each measurement, in bytes. Runs until cancelled.
        """
        while memory_limit_bytes is not None:
            used = await asyncio.to_thread(lambda: memory_bytes(members(self.pid)))
            on_pass(used)
            if used > memory_limit_bytes:
                self.kill("memory")
                return
            await asyncio.sleep(_WATCH_SECONDS)

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
