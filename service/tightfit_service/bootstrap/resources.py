"""What the parts of a server share: where it keeps things, what runs its work, what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TextIO

from sqlalchemy import Engine

from tightfit_service.adapters.execution.executors import ExecutorOptions, make_executor
from tightfit_service.adapters.execution.limits import Confinement, WorkerLimits
from tightfit_service.adapters.storage.database import upgrade
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.application.ports import ArtifactStores, Executor, UploadStaging
from tightfit_service.bootstrap.clock import SystemClock
from tightfit_service.bootstrap.storage import open_records, open_storage, take_data_dir
from tightfit_service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a server opens before it is composed, and holds while it lives."""

    lock: TextIO
    """On the data folder; the operating system frees it, however the server ends."""
    engine: Engine
    store: SqlStore
    artifacts: ArtifactStores
    staging: UploadStaging
    executor: Executor
    clock: SystemClock
    telemetry: PrometheusTelemetry

    def close(self) -> None:
        """Close the database and free the data folder; the executor is stopped already."""
        self.store.close()
        self.lock.close()


def open_resources(settings: Settings) -> Resources:
    """Take the data folder, bring the database up to date, and look whether artifacts can be kept.

    Raises:
        TightfitError: Another server has the folder, or the database or the artifact store cannot
            be used.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    lock = take_data_dir(settings.data_dir)
    engine = open_records(settings)
    upgrade(engine)
    telemetry = PrometheusTelemetry()
    artifacts, staging = open_storage(settings, telemetry)
    artifacts.check()
    return Resources(
        lock=lock,
        engine=engine,
        store=SqlStore(engine=engine),
        artifacts=artifacts,
        staging=staging,
        executor=make_executor(
            _executor_options(settings), artifacts=artifacts, telemetry=telemetry
        ),
        clock=SystemClock(),
        telemetry=telemetry,
    )


def _executor_options(settings: Settings) -> ExecutorOptions:
    return ExecutorOptions(
        data_dir=settings.data_dir,
        worker_count=settings.worker_count,
        threads=settings.worker_threads or None,
        confinement=Confinement(
            limits=WorkerLimits(
                memory_bytes=settings.worker_memory_bytes or None,
                cpu_seconds=settings.worker_cpu_seconds or None,
                disk_bytes=settings.worker_disk_bytes or None,
                address_space_bytes=settings.worker_address_space_bytes or None,
            ),
            isolation=settings.worker_isolation,
            user=settings.worker_user,
        ),
        kind=settings.executor,
        ray_address=settings.ray_address,
        ray_token_file=settings.ray_token_file,
        ray_node_dir=settings.ray_node_dir,
        gpus_per_unit=settings.gpus_per_unit,
    )
