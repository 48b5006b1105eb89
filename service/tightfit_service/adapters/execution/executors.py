"""Makes the executor that a deployment asks for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tightfit_service.adapters.execution.limits import Confinement
from tightfit_service.adapters.execution.local_processes import LocalProcessExecutor, WorkerProgram
from tightfit_service.adapters.execution.node_worker import NodeOptions
from tightfit_service.adapters.execution.ray_executor import RayExecutor
from tightfit_service.adapters.execution.ray_link import RayLink
from tightfit_service.adapters.execution.staging import DEFAULT_CACHE_BYTES
from tightfit_service.application.ports import ArtifactStores, Executor, Telemetry

SCRATCH = "scratch"
CACHES = "workers"
"""Folders below the data folder that workers may enter: running units, and what they keep between units."""

PRIVATE = ("artifacts", "uploads", "keys")
"""Folders below the data folder that are made later by others, and are none of the workers' business."""

WORKER: tuple[str, ...] = ("-m", "tightfit_service", "worker")
"""What makes a Python interpreter a worker."""


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where units run and what they may use.

    Attributes:
        data_dir: The service's folder of state; workers that have a user of their own are shut out of it.
        worker_count: Units that run at the same time.
        threads: Threads of numeric libraries of one worker; None chooses.
        confinement: What one worker may use and reach.
        kind: `local` or `ray`.
        ray_address: Of the cluster's client server.
        ray_token_file: With the cluster's token, or "".
        ray_node_dir: Folder of nodes for inputs and scratch files, or "".
        gpus_per_unit: Share of a GPU that each worker on Ray is given.
    """

    data_dir: Path
    worker_count: int
    threads: int | None
    confinement: Confinement
    kind: str = "local"
    ray_address: str = ""
    ray_token_file: str = ""
    ray_node_dir: str = ""
    gpus_per_unit: float = 0.0


def make_executor(
    options: ExecutorOptions, *, artifacts: ArtifactStores, telemetry: Telemetry
) -> Executor:
    """Return the executor, not started yet.

    Raises:
        InvalidRequestError: An option cannot be used on this machine.
    """
    if options.kind == "ray":
        return _on_ray(options, artifacts, telemetry)
    return _on_this_machine(options, artifacts, telemetry)


def _on_this_machine(
    options: ExecutorOptions, artifacts: ArtifactStores, telemetry: Telemetry
) -> Executor:
    data_dir = options.data_dir.resolve()
    caches = data_dir / CACHES
    caches.mkdir(parents=True, exist_ok=True)
    user = options.confinement.find_user()
    if user is not None:
        user.own(caches)
        for name in PRIVATE:
            (data_dir / name).mkdir(exist_ok=True)
        user.shut_out(data_dir, except_for=(SCRATCH, CACHES))
    return LocalProcessExecutor(
        program=WorkerProgram(
            command=[sys.executable, *WORKER, "--data-dir", str(caches)], threads=options.threads
        ),
        artifacts=artifacts,
        scratch_dir=data_dir / SCRATCH,
        telemetry=telemetry,
        worker_count=options.worker_count,
        confinement=options.confinement,
    )


def _on_ray(options: ExecutorOptions, artifacts: ArtifactStores, telemetry: Telemetry) -> Executor:
    return RayExecutor(
        link=RayLink(address=options.ray_address, token_file=options.ray_token_file),
        options=NodeOptions(
            arguments=WORKER,
            folder=options.ray_node_dir,
            cache_bytes=DEFAULT_CACHE_BYTES,
            # how many cores nodes have is theirs to know: one thread wastes none
            threads=options.threads or 1,
            confinement=options.confinement,
        ),
        artifacts=artifacts,
        scratch_dir=options.data_dir.resolve() / SCRATCH / "arriving",
        telemetry=telemetry,
        worker_count=options.worker_count,
        gpus_per_unit=options.gpus_per_unit,
    )
