"""Makes the executor that a deployment asks for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tightfit_service.adapters.execution.limits import WorkerLimits, WorkerUser
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor
from tightfit_service.application.ports import ArtifactStores, Executor, Telemetry

SCRATCH = "scratch"
CACHES = "workers"
"""Folders below the data folder that workers may enter: running units, and what they keep between units."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where units run and what they may use.

    Attributes:
        data_dir: The service's folder of state; workers that have a user of their own are shut out of it.
        worker_count: Units that run at the same time.
        threads: Threads of numeric libraries of one worker; None chooses.
        limits: What one worker may use.
        isolation: `auto`, `required` or `off`.
        user: Name of the user of workers, or "".
    """

    data_dir: Path
    worker_count: int
    threads: int | None
    limits: WorkerLimits
    isolation: str
    user: str


def make_executor(
    options: ExecutorOptions, *, artifacts: ArtifactStores, telemetry: Telemetry
) -> Executor:
    """Return the executor, not started yet.

    Raises:
        InvalidRequestError: An option cannot be used on this machine.
    """
    data_dir = options.data_dir.resolve()
    caches = data_dir / CACHES
    caches.mkdir(parents=True, exist_ok=True)
    if options.user:
        user = WorkerUser.named(options.user)
        user.own(caches)
        user.shut_out(data_dir, except_for=(SCRATCH, CACHES))
    return LocalProcessExecutor(
        command=[sys.executable, "-m", "tightfit_service", "worker", "--data-dir", str(caches)],
        artifacts=artifacts,
        scratch_dir=data_dir / SCRATCH,
        telemetry=telemetry,
        worker_count=options.worker_count,
        threads_per_worker=options.threads,
        limits=options.limits,
        isolation=options.isolation,
        user=options.user,
    )
