"""The loop of a worker process: takes units one by one, runs their handlers, reports."""

from __future__ import annotations

import ctypes
import errno
import gc
import io
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tightfit_service.adapters.execution.messages import (
    PARENT_VARIABLE,
    REPLY_VARIABLE,
    Message,
    decode,
    encode,
    error_message,
)
from tightfit_service.adapters.execution.sandbox import ISOLATION_VARIABLE
from tightfit_service.adapters.execution.worker_log import send_logs
from tightfit_service.application import tracing
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import WorkHandler
from tightfit_service.domain.errors import (
    ResourceExhaustedError,
    TightfitError,
    UnsupportedError,
)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_EOF_GRACE_SECONDS = 2.0


def serve(handlers: Mapping[str, WorkHandler]) -> None:
    """Run units until the server closes the channel; returns then, so that the process can end.

    The process must have been started by `LocalProcessExecutor`.

    Args:
        handlers: Kind of unit to what runs it.
    """
    _tie_to_parent(int(os.environ.pop(PARENT_VARIABLE)))
    requests, replies = _take_channels(int(os.environ.pop(REPLY_VARIABLE)))
    units: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read_units, args=(requests, units), daemon=True).start()
    replies.send({"type": "ready", "isolation": os.environ.pop(ISOLATION_VARIABLE, "")})
    send_logs(replies.send)
    while (unit := units.get()) is not None:
        replies.send({"type": "taken"})
        replies.send(_run(handlers, unit, replies))
        _tidy_up()


def find_handler(handlers: Mapping[str, WorkHandler], kind: str) -> WorkHandler:
    """Return what runs units of a kind.

    Raises:
        UnsupportedError: Nothing does.
    """
    handler = handlers.get(kind)
    if handler is None:
        raise UnsupportedError(
            f"this worker knows no units of kind {kind!r}",
            remedy="run server and workers from the same version of tightfit",
        )
    return handler


def disk_full(error: Exception) -> ResourceExhaustedError | None:
    """Return what jobs wait for to pass, where a handler found no room on the disk."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return ResourceExhaustedError(
        "the disk that workers write to is full", remedy="free disk space; jobs go on by themselves"
    )


class _Replies:
    """The pipe to the server; handlers may report progress from any thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        line = encode(message)
        with self._lock:
            self._pipe.write(line)
            self._pipe.flush()

    def progress(self, fraction: float, message: str) -> None:
        self.send({"type": "progress", "fraction": float(fraction), "message": message})


def _run(handlers: Mapping[str, WorkHandler], unit: Message, replies: _Replies) -> Message:
    tracer = tracing.RecordingTracer()
    tracing.use_tracer(tracer)
    message = _answer(handlers, unit, replies)
    if spans := tracer.take():
        message["spans"] = tracing.as_messages(spans)
    return message


def _answer(handlers: Mapping[str, WorkHandler], unit: Message, replies: _Replies) -> Message:
    try:
        handler = find_handler(handlers, unit["kind"])
        inputs = {name: Path(path) for name, path in unit["inputs"].items()}
        with tracing.span("work", parent=unit["trace"], kind=unit["kind"], pid=os.getpid()):
            payload, outputs = handler(
                unit["payload"], inputs, Path(unit["output_dir"]), replies.progress
            )
        result = {
            "type": "result",
            "payload": to_plain(payload),
            "outputs": {name: str(path) for name, path in outputs.items()},
        }
        encode(result)
    except TightfitError as error:
        return error_message(error)
    except Exception as error:  # noqa: BLE001  # the border of a unit: the server decides what to do
        traceback.print_exc()
        sys.stderr.flush()
        if (full := disk_full(error)) is not None:
            return error_message(full)
        is_memory = isinstance(error, MemoryError)
        return {
            "type": "failure",
            "error": "".join(traceback.format_exception_only(error)).strip(),
            "is_memory": is_memory,
        }
    return result


def _read_units(requests: BinaryIO, units: queue.SimpleQueue[Message | None]) -> None:
    for line in requests:
        units.put(decode(line))
    # The server has gone or wants this worker gone. An idle worker returns from `serve` at once; one
    # that is still busy after the grace period takes its children down with it.
    units.put(None)
    time.sleep(_EOF_GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _take_channels(reply_descriptor: int) -> tuple[BinaryIO, _Replies]:
    """Move both channels to descriptors that children of handlers do not inherit."""
    requests = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = io.StringIO()
    os.set_inheritable(reply_descriptor, False)  # noqa: FBT003  # the signature is the library's
    return requests, _Replies(os.fdopen(reply_descriptor, "wb"))


def _tie_to_parent(parent: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # orphans among our descendants become our children, so that the server finds them to kill
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # when memory runs out, the kernel shall take a worker before the server
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("900")
    # the parent may have died before the kernel was asked
    if os.getppid() != parent:
        raise SystemExit("the server that started this worker is gone")


def _tidy_up() -> None:
    gc.collect()
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
