"""Units of work in processes, time, and telemetry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tightfit_service.application.ports.techniques import ProgressCallback
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.trial import Trial


@dataclass(frozen=True, kw_only=True)
class WorkUnit:
    """A pure unit of work: the same kind, payload and inputs give the same result.

    Attributes:
        project: Whose artifacts it reads and writes.
        kind: Which handler runs it (see `application.units.kinds`).
        payload: Plain JSON data.
        inputs: Name to digest; the executor provides them to the worker as files.
        timeout_seconds: The worker is killed after this.
    """

    project: str
    kind: str
    payload: Mapping[str, Any]
    inputs: Mapping[str, str]
    timeout_seconds: float = 3_600.0
    label: str = ""
    """For logs: `job 3f2c trial 4`. Not part of the identity."""
    trace_parent: str = ""
    """W3C `traceparent` of the span that its own belong below; empty for none. Not part of the identity."""


@dataclass(frozen=True, kw_only=True)
class WorkResult:
    """What a unit of work produced: plain JSON data, and files by digest (already in the artifact store)."""

    payload: Mapping[str, Any]
    outputs: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes by digest of the files; those that nobody counted are missing."""


BeginCallback = Callable[[], Awaitable[None]]
"""Awaited when a worker is there for a unit, before the worker is given it."""


async def begin_at_once() -> None:
    """Have nothing to do before a unit begins."""


class Executor(Protocol):
    """Runs units of work in processes that can be killed."""

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        """Run a unit to its end.

        Cancelling the awaiting task kills the worker with all its children within a second and
        frees its slot. `on_progress` is called on the event loop; `on_begin` once, after the unit has
        waited for a worker and before anything of it runs there. What `on_begin` raises ends the unit.

        Raises:
            WorkerDiedError: The process crashed, held too much memory, or its node was lost.
            WorkFailedError: The worker raised, or ran out of time. Errors of the domain that the
                handler raised arrive as themselves.
        """
        ...

    async def check(self) -> None:
        """Raise UnavailableError, with the remedy, unless units can be run now."""
        ...

    async def start(self) -> None:
        """Start workers."""
        ...

    async def stop(self) -> None:
        """Kill all workers and wait until they are gone."""
        ...


class WorkHandler(Protocol):
    """Runs inside a worker process."""

    def __call__(
        self,
        payload: Mapping[str, Any],
        inputs: Mapping[str, Path],
        output_dir: Path,
        on_progress: ProgressCallback,
    ) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
        """Return the result's payload and the files it wrote below `output_dir`, by name."""
        ...


class Clock(Protocol):
    """Time, injected so that tests own it."""

    def now(self) -> datetime:
        """Return the present time, UTC, timezone-aware."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        ...


class Telemetry(Protocol):
    """Where the use cases report what happens; Prometheus in production, nothing in most tests."""

    def job_state(self, job: Job, before: JobState | None) -> None:
        """Report a new job (`before` None) or a change of state."""
        ...

    def job_waited(self, seconds: float) -> None:
        """Report how long a job that starts to run was in the queue."""
        ...

    def lease_event(self, event: str) -> None:
        """Report what happened to the lease of a job: `taken_over` here, `lost` here, or `given_up`."""
        ...

    def job_progressed(self, job_id: str) -> None:
        """Report that a running job goes on: a stage, a step of training, a trial."""
        ...

    def queue_seen(self, counts: Mapping[JobState, int], *, oldest_seconds: float) -> None:
        """Report how many jobs the database holds by state, and how long the oldest queued one waits."""
        ...

    def trial_finished(self, job_id: str, trial: Trial) -> None:
        """Report a trial's end with its stage times."""
        ...

    def best_so_far(self, job_id: str, trial: Trial | None) -> None:
        """Report the best trial of a running job; None when the job has ended and its series can go."""
        ...

    def unit_finished(self, kind: str, result: str, seconds: float) -> None:
        """Report a unit of work that was run: `ok`, `refused` (bad input), `failed`, `cancelled`."""
        ...

    def emulator_called(self, emulator: str, seconds: float) -> None:
        """Report one estimate."""
        ...

    def worker_restarted(self, reason: str) -> None:
        """Report that a worker process was replaced, and why.

        `killed`, `crashed`, `timeout`, `memory`, `cpu`, `disk`, or `node_lost`.
        """
        ...

    def artifact_bytes(self, direction: str, count: int) -> None:
        """Report bytes `received`, `sent`, `stored`, `deleted` (set aside) or `purged`."""
        ...

    def cache_lookup(self, *, hit: bool) -> None:
        """Report a look-up in the cache of work results."""
        ...

    def dependency_checked(self, dependency: str, *, is_up: bool, seconds: float) -> None:
        """Report a check of the `database` or of `artifacts`, and how long it took."""
        ...

    def certificate_expires(self, certificate: str, end: datetime) -> None:
        """Report until when a certificate in use (`grpc`, the port's) is valid."""
        ...
