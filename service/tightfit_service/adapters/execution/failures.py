"""How the end of a worker is told: what happened, how much it used, and its last words."""

from __future__ import annotations

from tightfit_service.adapters.execution.limits import WorkerLimits
from tightfit_service.adapters.execution.worker_process import Usage
from tightfit_service.application.ports import WorkUnit
from tightfit_service.domain.errors import (
    TightfitError,
    UnavailableError,
    WorkerDiedError,
    WorkFailedError,
)

STOPPING = "stopping"
"""Reason of a kill: the executor stops."""

_MORE_MEMORY = "use a smaller batch, or allow workers more memory"


def died(
    unit: WorkUnit, *, reason: str, ending: str, usage: Usage, limits: WorkerLimits, tail: str
) -> TightfitError:
    """Return the error for a unit whose worker has gone.

    Args:
        unit: What ran.
        reason: Why the server killed the worker, or "".
        ending: How it ended, such as `SIGSEGV`.
        usage: What it used.
        limits: What it was allowed.
        tail: What it printed last.
    """
    if reason == STOPPING:
        return not_running()
    if reason == "timeout":
        return failed(unit, f"took longer than {unit.timeout_seconds:g} s", tail)
    if reason == "cpu":
        what = f"took {usage.cpu_seconds:.0f} s of processor time, limit {limits.cpu_seconds:g} s"
        return failed(unit, what, tail, remedy="raise worker_cpu_seconds")
    if reason == "disk":
        what = f"wrote {usage.disk_bytes >> 20} MiB, limit {(limits.disk_bytes or 0) >> 20} MiB"
        return failed(unit, what, tail, remedy="raise worker_disk_bytes")
    if reason == "memory":
        held, limit = usage.memory_bytes >> 20, (limits.memory_bytes or 0) >> 20
        what = f"held {held} MiB of memory, limit {limit} MiB"
        return WorkerDiedError(_text(unit, what, tail), remedy=_MORE_MEMORY)
    what = f"its process died ({ending})"
    if usage.memory_bytes:
        what += f", having held up to {usage.memory_bytes >> 20} MiB of memory"
    is_killed = ending == "SIGKILL"
    if is_killed:
        what += "; Linux kills so when memory runs out"
    return WorkerDiedError(_text(unit, what, tail), remedy=_MORE_MEMORY if is_killed else "")


def failed(unit: WorkUnit, what: str, tail: str, *, remedy: str = "") -> WorkFailedError:
    """Return the error for a unit that failed without its worker dying of it."""
    return WorkFailedError(_text(unit, what, tail), remedy=remedy)


def out_of_memory(unit: WorkUnit, what: str, tail: str) -> WorkFailedError:
    """Return the error for a unit that was refused memory and said so."""
    return failed(unit, what, tail, remedy=_MORE_MEMORY)


def not_running() -> UnavailableError:
    """Return the error for units that come to an executor that has stopped."""
    return UnavailableError(
        "the executor is not running", remedy="try again when the server has started"
    )


def last_output(tail: str) -> str:
    """Return the end of a sentence that tells what a worker printed last."""
    return f"; its last output:\n{tail}" if tail else ""


def _text(unit: WorkUnit, what: str, tail: str) -> str:
    return f"{unit.label or unit.kind}: {what}{last_output(tail)}"
