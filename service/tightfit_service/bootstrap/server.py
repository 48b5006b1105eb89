"""A whole server: composed, started, stopped."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TextIO

from sqlalchemy import Engine

from tightfit_service.adapters.access.factory import (
    check_exposure,
)
from tightfit_service.adapters.emulators.calibrated import ProcessFitter
from tightfit_service.adapters.emulators.tflm_interpreter import TflmArena
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.execution.executors import ExecutorOptions, make_executor
from tightfit_service.adapters.execution.limits import WorkerLimits
from tightfit_service.adapters.provenance.dsse import Ed25519Signer
from tightfit_service.adapters.provenance.file_digests import ZipFileSets
from tightfit_service.adapters.provenance.signing_key import (
    key_id,
    open_signing_key,
)
from tightfit_service.adapters.storage.database import upgrade
from tightfit_service.adapters.storage.database_probe import SqlDatabaseProbe
from tightfit_service.adapters.storage.sql_calibrations import SqlCalibrationStore
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_quotas import SqlQuotaStore
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.sql_targets import SqlTargetStore
from tightfit_service.adapters.telemetry.metrics_port import MetricsPort
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.api.limits import CallLimits
from tightfit_service.api.request_shape import RequestShape
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.application.assets import AssetLibrary
from tightfit_service.application.collection import (
    Collector,
)
from tightfit_service.application.device_calibration import DeviceCalibrator
from tightfit_service.application.device_measurements import DeviceMeasurements
from tightfit_service.application.diagnosis import (
    Diagnosis,
    Finding,
    deployment_checks,
)
from tightfit_service.application.hardware import HardwareLibrary
from tightfit_service.application.jobs import JobDesk
from tightfit_service.application.journal import EventHub
from tightfit_service.application.ports import (
    ArtifactStores,
    Clock,
    Executor,
)
from tightfit_service.application.provenance import Provenance
from tightfit_service.application.quotas import Quotas
from tightfit_service.application.readiness import Readiness
from tightfit_service.application.runners import RunnerDesk
from tightfit_service.application.running import JobRunner
from tightfit_service.application.scheduler import JobScheduler, ReplicaOptions
from tightfit_service.bootstrap.access import exposure_of, make_access, port_credentials
from tightfit_service.bootstrap.clock import SystemClock
from tightfit_service.bootstrap.hardware import catalogue, emulators, missing_extras, tool_versions
from tightfit_service.bootstrap.keys import keys_dir, signing_key_file
from tightfit_service.bootstrap.observability import (
    configure_logging,
    make_metrics_port,
    start_traces,
)
from tightfit_service.bootstrap.storage import (
    default_quota,
    make_collector,
    open_records,
    open_storage,
    take_data_dir,
)
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.settings import Settings

PARENT_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server with everything it owns, ready to be started."""

    settings: Settings
    grpc: GrpcServer
    metrics: MetricsPort | None
    executor: Executor
    scheduler: JobScheduler
    runners: RunnerDesk
    readiness: Readiness
    collector: Collector
    store: SqlStore
    lock: TextIO
    """Held while the server lives; the operating system frees it, however the server ends."""

    async def start(self) -> dict[str, str]:
        """Start workers, the queues, and the ports, in this order; return the bound addresses."""
        await self.executor.start()
        await self.runners.start()
        await self.scheduler.start()
        addresses = {"address": await self.grpc.start()}
        await self.readiness.start(self.grpc.set_ready)
        await self.collector.start()
        if self.metrics is not None:
            addresses["metrics_address"] = self.metrics.start()
        return addresses

    async def stop(self) -> None:
        """Drain calls, then stop queue and workers; running jobs go on after the next start."""
        await self.collector.stop()
        await self.readiness.stop()
        await self.grpc.stop(grace_seconds=self.settings.drain_seconds)
        await self.scheduler.stop()
        await self.runners.stop()
        await self.executor.stop()
        if self.metrics is not None:
            self.metrics.stop()
        self.store.close()
        self.lock.close()


def build_server(settings: Settings) -> Server:
    """Compose a server from its settings; the database is brought up to date.

    Raises:
        TightfitError: The database or the artifact store cannot be used.
    """
    check_exposure(
        listen=settings.listen,
        has_tls=bool(settings.tls_cert_file),
        knows_callers=settings.auth_required,
        allowed=settings.allow_insecure,
    )
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    lock = take_data_dir(settings.data_dir)
    engine = open_records(settings)
    upgrade(engine)
    store = SqlStore(engine=engine)
    telemetry = PrometheusTelemetry()
    artifacts, staging = open_storage(settings, telemetry)
    artifacts.check()
    clock = SystemClock()
    hub = EventHub()
    executor = make_executor(_executor_options(settings), artifacts=artifacts, telemetry=telemetry)
    hardware = HardwareLibrary(
        catalogue=catalogue(),
        targets=SqlTargetStore(engine=engine),
        emulators=emulators(),
        records=store,
        results=store,
        executor=executor,
        clock=clock,
        telemetry=telemetry,
        artifacts=artifacts,
        file_emulators=(TflmArena(),),
        compilers=(VelaCompiler(),),
        calibrations=SqlCalibrationStore(engine=engine),
        fitter=ProcessFitter(),
    )
    runners = RunnerDesk(
        clock=clock,
        telemetry=telemetry.runners,
        resolve_target=catalogue().get,
        server_version=metadata.version("tightfit-service"),
    )
    measurements = DeviceMeasurements(measurer=runners, results=store, telemetry=telemetry.runners)
    runner = JobRunner(
        store=store,
        hardware=hardware,
        executor=executor,
        clock=clock,
        telemetry=telemetry,
        tool_versions=tool_versions(),
        # a job alone takes all workers; with several at a time each has its share
        parallel_trials=max(1, settings.worker_count // settings.concurrent_jobs),
        measurements=measurements,
        provenance=Provenance(
            signer=Ed25519Signer(
                open_signing_key(keys_dir(settings), key_file=signing_key_file(settings))
            ),
            artifacts=artifacts,
            file_sets=ZipFileSets(),
            scratch_dir=settings.data_dir.resolve() / "scratch",
        ),
    )
    scheduler = JobScheduler(
        store=store,
        queue=SqlJobQueue(engine=engine),
        run_job=runner,
        hub=hub,
        clock=clock,
        telemetry=telemetry,
        concurrent_jobs=settings.concurrent_jobs,
        replica=ReplicaOptions(
            name=settings.replica_name or socket.gethostname(),
            lease_seconds=settings.lease_seconds,
            # the lock on the folder keeps every other server from the database in it
            is_alone=not settings.database_url,
            quota=default_quota(settings),
        ),
    )
    quotas = Quotas(store=SqlQuotaStore(engine=engine), default=default_quota(settings))
    assets = AssetLibrary(
        quotas=quotas,
        staging=staging,
        artifacts=artifacts,
        records=store,
        results=store,
        executor=executor,
        clock=clock,
        telemetry=telemetry,
        max_bytes=settings.max_upload_bytes,
    )
    jobs = JobDesk(
        quotas=quotas,
        jobs=store,
        records=store,
        hardware=hardware,
        executor=executor,
        scheduler=scheduler,
        hub=hub,
        clock=clock,
        telemetry=telemetry,
        target_checks={ModelFormat.VELA: VelaCompiler().check},
        missing_extras=missing_extras(),
    )
    return Server(
        settings=settings,
        grpc=GrpcServer(
            assets=assets,
            jobs=jobs,
            hardware=hardware,
            calibrations=DeviceCalibrator(
                hardware=hardware,
                executor=executor,
                results=store,
                measurements=measurements,
                fitter=ProcessFitter(),
                calibrations=SqlCalibrationStore(engine=engine),
                clock=clock,
                telemetry=telemetry,
            ),
            runners=runners,
            diagnosis=_diagnosis(settings, engine, artifacts, clock, executor),
            metrics=telemetry,
            options=ServerOptions(
                listen=settings.listen,
                credentials=port_credentials(settings, telemetry),
                health_listen=settings.health_listen,
                max_receive_bytes=settings.max_message_bytes,
                limits=_call_limits(settings),
            ),
            access=make_access(settings, engine, clock),
        ),
        metrics=make_metrics_port(settings, telemetry),
        executor=executor,
        scheduler=scheduler,
        runners=runners,
        readiness=Readiness(
            database=SqlDatabaseProbe(engine=engine), artifacts=artifacts, telemetry=telemetry
        ),
        collector=make_collector(settings, engine, artifacts, staging, telemetry),
        store=store,
        lock=lock,
    )


async def serve(
    settings: Settings, *, ready_file: Path | None = None, parent_pid: int | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, or until the process `parent_pid` is gone.

    Args:
        settings: The settings.
        ready_file: Written whole, as JSON with the bound addresses, once the server serves.
        parent_pid: Of a tool that started this server for itself.

    Raises:
        TightfitError: The server cannot start.
    """
    configure_logging(settings)
    stop_traces = start_traces(settings)
    server = build_server(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    addresses = await server.start()
    _spare_collector()
    if ready_file is not None:
        partial = ready_file.with_name(ready_file.name + ".partial")
        partial.write_text(json.dumps(addresses))
        partial.rename(ready_file)
    watcher = asyncio.create_task(_stop_with(parent_pid, stop)) if parent_pid else None
    await stop.wait()
    if watcher is not None:
        watcher.cancel()
    await server.stop()
    await asyncio.to_thread(stop_traces)


async def diagnose(settings: Settings) -> Sequence[Finding]:
    """Look at what a server with these settings would stand on, without one; nothing is changed.

    Raises:
        TightfitError: A setting cannot be used.
    """
    engine = open_records(settings)
    artifacts, _ = open_storage(settings)
    try:
        return await _diagnosis(settings, engine, artifacts, SystemClock(), None).run()
    finally:
        engine.dispose()


def _spare_collector() -> None:
    """Take what start-up made out of Python's garbage collection: it lives as long as the process.

    Libraries are 140 thousand objects, and every look through them stops all calls for about 100 ms.
    """
    gc.collect()
    gc.freeze()


async def _stop_with(pid: int, stop: asyncio.Event) -> None:
    # Nothing tells a process that its parent is gone; Linux gives it another parent, which can be seen.
    while os.getppid() == pid:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(PARENT_POLL_SECONDS)
    stop.set()


def _executor_options(settings: Settings) -> ExecutorOptions:
    return ExecutorOptions(
        data_dir=settings.data_dir,
        worker_count=settings.worker_count,
        threads=settings.worker_threads or None,
        limits=WorkerLimits(
            memory_bytes=settings.worker_memory_bytes or None,
            cpu_seconds=settings.worker_cpu_seconds or None,
            disk_bytes=settings.worker_disk_bytes or None,
            address_space_bytes=settings.worker_address_space_bytes or None,
        ),
        isolation=settings.worker_isolation,
        user=settings.worker_user,
        kind=settings.executor,
        ray_address=settings.ray_address,
        ray_token_file=settings.ray_token_file,
        ray_node_dir=settings.ray_node_dir,
        gpus_per_unit=settings.gpus_per_unit,
    )


def _call_limits(settings: Settings) -> CallLimits:
    return CallLimits(
        requests_per_second=settings.limit_requests_per_second,
        burst_requests=settings.limit_burst_requests,
        concurrent_calls=settings.limit_concurrent_calls,
        concurrent_watches=settings.limit_concurrent_watches,
        concurrent_uploads=settings.limit_concurrent_uploads,
        default_deadline_seconds=settings.default_deadline_seconds,
        shape=RequestShape(
            max_depth=settings.max_request_depth, max_items=settings.max_request_items
        ),
    )


def _diagnosis(
    settings: Settings,
    engine: Engine,
    artifacts: ArtifactStores,
    clock: Clock,
    executor: Executor | None,
) -> Diagnosis:
    checks = deployment_checks(
        database=SqlDatabaseProbe(engine=engine),
        artifacts=artifacts,
        clock=clock,
        data_dir=settings.data_dir,
        exposure=exposure_of(settings),
        versions=tool_versions(),
        signing_key_id=lambda: key_id(
            open_signing_key(keys_dir(settings), key_file=signing_key_file(settings)).public_key()
        ),
        workers=executor.check if executor is not None else None,
    )
    return Diagnosis(checks, clock=clock)
