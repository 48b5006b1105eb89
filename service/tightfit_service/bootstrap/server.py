"""A whole server: composed, started, stopped."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from tightfit_service.adapters.access.factory import check_exposure
from tightfit_service.adapters.provenance.signing_key import key_id, open_signing_key
from tightfit_service.adapters.storage.database_probe import SqlDatabaseProbe
from tightfit_service.adapters.storage.sql_quotas import SqlQuotaStore
from tightfit_service.adapters.telemetry.metrics_port import MetricsPort
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.api.limits import CallLimits
from tightfit_service.api.request_shape import RequestShape
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.application.assets.quotas import Quotas
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.operations.collection import Collector
from tightfit_service.application.operations.diagnosis import Diagnosis, Finding, deployment_checks
from tightfit_service.application.operations.readiness import Readiness
from tightfit_service.application.ports import ArtifactStores, Clock, Executor
from tightfit_service.application.runners.desk import RunnerDesk
from tightfit_service.application.scheduling.journal import EventHub
from tightfit_service.application.scheduling.scheduler import JobScheduler
from tightfit_service.bootstrap.access import exposure_of, make_access, port_credentials
from tightfit_service.bootstrap.clock import SystemClock
from tightfit_service.bootstrap.hardware import tool_versions
from tightfit_service.bootstrap.keys import keys_dir, signing_key_file
from tightfit_service.bootstrap.observability import (
    configure_logging,
    make_metrics_port,
    start_traces,
)
from tightfit_service.bootstrap.resources import Resources, open_resources
from tightfit_service.bootstrap.storage import (
    default_quota,
    make_collector,
    open_records,
    open_storage,
)
from tightfit_service.bootstrap.use_cases import (
    make_assets,
    make_calibrator,
    make_jobs,
    make_libraries,
    make_runners,
    make_scheduler,
)
from tightfit_service.settings import Settings

PARENT_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server with everything it owns, ready to be started."""

    settings: Settings
    resources: Resources
    grpc: GrpcServer
    metrics: MetricsPort | None
    scheduler: JobScheduler
    runners: RunnerDesk
    readiness: Readiness
    collector: Collector

    async def start(self) -> dict[str, str]:
        """Start workers, the queues, and the ports, in this order; return the bound addresses."""
        await self.resources.executor.start()
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
        await self.resources.executor.stop()
        if self.metrics is not None:
            self.metrics.stop()
        self.resources.close()


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
    resources = open_resources(settings)
    engine, artifacts, telemetry = resources.engine, resources.artifacts, resources.telemetry
    hub = EventHub()
    libraries = make_libraries(settings, resources)
    runners = make_runners(resources)
    measurements = DeviceMeasurements(
        measurer=runners, results=resources.store, telemetry=telemetry.runners
    )
    scheduler = make_scheduler(settings, resources, libraries, measurements=measurements, hub=hub)
    quotas = Quotas(store=SqlQuotaStore(engine=engine), default=default_quota(settings))
    return Server(
        settings=settings,
        resources=resources,
        grpc=GrpcServer(
            assets=make_assets(settings, resources, libraries, quotas=quotas),
            jobs=make_jobs(resources, libraries, quotas=quotas, scheduler=scheduler, hub=hub),
            hardware=libraries.hardware,
            calibrations=make_calibrator(resources, libraries, measurements=measurements),
            runners=runners,
            diagnosis=_diagnosis(settings, engine, artifacts, resources.clock, resources.executor),
            metrics=telemetry,
            options=_server_options(settings, telemetry),
            access=make_access(settings, engine, resources.clock),
        ),
        metrics=make_metrics_port(settings, telemetry),
        scheduler=scheduler,
        runners=runners,
        readiness=Readiness(
            database=SqlDatabaseProbe(engine=engine), artifacts=artifacts, telemetry=telemetry
        ),
        collector=make_collector(settings, engine, artifacts, resources.staging, telemetry),
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


def _server_options(settings: Settings, telemetry: PrometheusTelemetry) -> ServerOptions:
    return ServerOptions(
        listen=settings.listen,
        credentials=port_credentials(settings, telemetry),
        health_listen=settings.health_listen,
        max_receive_bytes=settings.max_message_bytes,
        limits=_call_limits(settings),
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
