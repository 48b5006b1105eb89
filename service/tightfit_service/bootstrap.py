"""Composition: the only file that names concrete classes, in the server and in its workers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata, util
from pathlib import Path
from typing import TextIO

import grpc
import structlog
from sqlalchemy import Engine

from tightfit_service.adapters.access.factory import (
    check_exposure,
    make_admin_key,
    open_access,
    open_tls,
)
from tightfit_service.adapters.access.oidc import OidcSettings
from tightfit_service.adapters.access.tls_files import certificate_end
from tightfit_service.adapters.emulators.calibrated import ProcessFitter
from tightfit_service.adapters.emulators.edge_tpu import EDGE_TPU_EMULATOR
from tightfit_service.adapters.emulators.esp import EspEmulator
from tightfit_service.adapters.emulators.ethos_u import ETHOS_U_EMULATOR
from tightfit_service.adapters.emulators.gpu import GPU_EMULATOR
from tightfit_service.adapters.emulators.mcu import McuEmulator
from tightfit_service.adapters.emulators.npu import HEXAGON_EMULATOR, NPU_EMULATOR
from tightfit_service.adapters.emulators.roofline import RooflineEmulator
from tightfit_service.adapters.emulators.tflm_interpreter import TflmArena
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.execution.executors import ExecutorOptions, make_executor
from tightfit_service.adapters.execution.limits import WorkerLimits
from tightfit_service.adapters.provenance.dsse import Ed25519Signer
from tightfit_service.adapters.provenance.file_digests import ZipFileSets
from tightfit_service.adapters.provenance.signing_key import (
    kept_public_keys,
    key_id,
    open_signing_key,
)
from tightfit_service.adapters.storage.database import open_database, upgrade
from tightfit_service.adapters.storage.database_probe import SqlDatabaseProbe
from tightfit_service.adapters.storage.folder_artifacts import FolderArtifactStores
from tightfit_service.adapters.storage.s3_artifacts import S3ArtifactStores
from tightfit_service.adapters.storage.s3_bucket import S3Bucket
from tightfit_service.adapters.storage.s3_connection import S3Options
from tightfit_service.adapters.storage.s3_uploads import S3UploadStaging
from tightfit_service.adapters.storage.sql_calibrations import SqlCalibrationStore
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_quotas import SqlQuotaStore
from tightfit_service.adapters.storage.sql_results import SqlResultExpiry
from tightfit_service.adapters.storage.sql_store import SqlStore
from tightfit_service.adapters.storage.sql_targets import SqlTargetStore
from tightfit_service.adapters.storage.upload_staging import FolderUploadStaging
from tightfit_service.adapters.targets.catalogue import YamlTargetCatalogue
from tightfit_service.adapters.telemetry.metrics_port import MetricsPort
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.api.limits import CallLimits
from tightfit_service.api.request_shape import RequestShape
from tightfit_service.api.server import GrpcServer, ServerOptions
from tightfit_service.api.tls import server_credentials
from tightfit_service.application.access import Access
from tightfit_service.application.assets import AssetLibrary
from tightfit_service.application.collection import (
    CollectionPolicy,
    CollectionReport,
    Collector,
)
from tightfit_service.application.device_calibration import DeviceCalibrator
from tightfit_service.application.device_measurements import DeviceMeasurements
from tightfit_service.application.diagnosis import (
    Diagnosis,
    Exposure,
    Finding,
    deployment_checks,
)
from tightfit_service.application.hardware import HardwareLibrary
from tightfit_service.application.jobs import JobDesk
from tightfit_service.application.journal import EventHub
from tightfit_service.application.ports import (
    ArtifactStores,
    Clock,
    Emulator,
    Executor,
    GraphPass,
    NetworkPass,
    NodePass,
    TargetCatalogue,
    UploadStaging,
    WorkHandler,
)
from tightfit_service.application.provenance import Provenance
from tightfit_service.application.quotas import Quotas
from tightfit_service.application.readiness import Readiness
from tightfit_service.application.recipe_work import GraphSteps, RecipeWork
from tightfit_service.application.runners import RunnerDesk
from tightfit_service.application.running import JobRunner
from tightfit_service.application.scheduler import JobScheduler, ReplicaOptions
from tightfit_service.application.tracing import use_tracer
from tightfit_service.application.work import WorkHandlers
from tightfit_service.domain.errors import UnavailableError, UnsupportedError
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.domain.quota import Quota
from tightfit_service.settings import Settings

log = structlog.get_logger(__name__)

PARENT_POLL_SECONDS = 0.5

REPORTED_PACKAGES = (
    "tightfit-service",
    "torch",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "openvino",
    "executorch",
    "scipy",
    "numpy",
)

EXTRAS = {
    ModelFormat.OPENVINO: ("openvino", "openvino"),
    ModelFormat.EXECUTORCH: ("executorch", "executorch"),
}
"""Output formats that need an extra of this distribution: its name, and the package that it brings."""


class SystemClock:
    """The machine's clock; implements `ports.Clock`."""

    def now(self) -> datetime:
        """Return the present time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()


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
    lock = _lock(settings.data_dir)
    engine = open_records(settings)
    upgrade(engine)
    store = SqlStore(engine=engine)
    artifacts, staging = _storage(settings)
    artifacts.check()
    telemetry = PrometheusTelemetry()
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
        file_emulators=(VelaCompiler(), TflmArena()),
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
                open_signing_key(_keys_dir(settings), key_file=_key_file(settings))
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
                credentials=_credentials(settings, telemetry),
                health_listen=settings.health_listen,
                max_receive_bytes=settings.max_message_bytes,
                limits=_call_limits(settings),
            ),
            access=_access(settings, engine, clock),
        ),
        metrics=_metrics_port(settings, telemetry),
        executor=executor,
        scheduler=scheduler,
        runners=runners,
        readiness=Readiness(
            database=SqlDatabaseProbe(engine=engine), artifacts=artifacts, telemetry=telemetry
        ),
        collector=_collector(settings, engine, artifacts, staging, telemetry),
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
    stop_traces = _start_traces(settings)
    server = build_server(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    addresses = await server.start()
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
    artifacts, _ = _storage(settings)
    try:
        return await _diagnosis(settings, engine, artifacts, SystemClock(), None).run()
    finally:
        engine.dispose()


async def _stop_with(pid: int, stop: asyncio.Event) -> None:
    # Nothing tells a process that its parent is gone; Linux gives it another parent, which can be seen.
    while os.getppid() == pid:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(PARENT_POLL_SECONDS)
    stop.set()


def migrate(settings: Settings) -> None:
    """Bring the database up to date.

    Raises:
        TightfitError: The database cannot be used, or a newer version wrote it.
    """
    configure_logging(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    engine = open_records(settings)
    upgrade(engine)
    engine.dispose()
    log.info("database is up to date")


def collect(settings: Settings, *, dry_run: bool) -> CollectionReport:
    """Collect what nothing refers to, once; safe beside servers that run.

    Raises:
        TightfitError: The database or the artifact store cannot be used.
    """
    engine = open_records(settings)
    upgrade(engine)
    artifacts, staging = _storage(settings)
    collector = _collector(settings, engine, artifacts, staging, PrometheusTelemetry())
    try:
        return collector.collect(dry_run=dry_run)
    finally:
        engine.dispose()


def run_worker(settings: Settings) -> None:
    """Run units of work until the server closes the channel."""
    from tightfit_service.adapters.execution.worker import serve as serve_units

    serve_units(handler_table(settings))


def pack_file(source: Path, destination: Path) -> tuple[int, int]:
    """Write the packed form of a model file, and return the sizes of both in bytes.

    Raises:
        TightfitError: The file is not what it is called, or too large.
        OSError: A file cannot be read or written.
    """
    from tightfit_service.adapters.formats.packed import pack

    data = source.read_bytes()
    kinds = {".onnx": ModelFormat.ONNX, ".tflite": ModelFormat.TFLITE}
    packed = pack(data, kinds.get(source.suffix.lower(), ModelFormat.EXECUTORCH))
    destination.write_bytes(packed)
    return len(data), len(packed)


def public_keys(settings: Settings) -> bytes:
    """Return the public keys that results of this deployment can be verified with, as PEM."""
    return kept_public_keys(_keys_dir(settings))


def _key_file(settings: Settings) -> Path | None:
    return Path(settings.provenance_key_file) if settings.provenance_key_file else None


def _keys_dir(settings: Settings) -> Path:
    return settings.data_dir / "keys"


def handler_table(settings: Settings) -> dict[str, WorkHandler]:
    """Return everything that a worker can run, by the kind of unit."""
    from tightfit_service.adapters.calibration.designed_networks import DesignedNetworks
    from tightfit_service.application.calibration_work import CalibrationWork

    handlers = build_handlers(settings)
    calibration = CalibrationWork(
        networks=DesignedNetworks(),
        importer=handlers.importer,
        inspector=handlers.inspector,
        exporters=handlers.recipes.exporters,
    )
    return {**handlers.table(), **calibration.table()}


def build_handlers(settings: Settings) -> WorkHandlers:
    """Compose what runs in a worker; the heavy libraries are loaded here and nowhere in the server."""
    from tightfit_service.adapters.datasets.archive import ArchiveDatasetReader
    from tightfit_service.adapters.evaluation.executorch_evaluator import ExecutorchEvaluator
    from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator
    from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
    from tightfit_service.adapters.evaluation.openvino_evaluator import OpenvinoEvaluator
    from tightfit_service.adapters.formats.any_import import AnyImporter
    from tightfit_service.adapters.formats.c_array_export import CArrayEvaluator, CArrayExporter
    from tightfit_service.adapters.formats.executorch_export import ExecutorchExporter
    from tightfit_service.adapters.formats.onnx_export import OnnxExporter
    from tightfit_service.adapters.formats.onnx_import import OnnxImporter
    from tightfit_service.adapters.formats.openvino_export import (
        OpenvinoExporter,
        network_and_weights,
    )
    from tightfit_service.adapters.formats.pt2_import import Pt2Importer
    from tightfit_service.adapters.formats.tflite_export import TfliteExporter
    from tightfit_service.adapters.formats.tflite_import import TfliteImporter
    from tightfit_service.adapters.training.synthetic_dataset import NetworkSynthesizer
    from tightfit_service.adapters.training.torch_trainer import TorchTrainer
    from tightfit_service.graph.profile import OnnxGraphInspector
    from tightfit_service.passes.clustering import ClusteringPass
    from tightfit_service.passes.depth_pruning import DepthPruningPass
    from tightfit_service.passes.equalization import EqualizationPass
    from tightfit_service.passes.low_rank import LowRankPass
    from tightfit_service.passes.precision import PrecisionPass
    from tightfit_service.passes.precision_sensitivity import precision_sensitivity
    from tightfit_service.passes.quantization import StaticQuantizationPass
    from tightfit_service.passes.resolution import ResolutionPass
    from tightfit_service.passes.sparsity import SparsityPass
    from tightfit_service.passes.structured_pruning import StructuredPruningPass

    threads = int(os.environ.get("OMP_NUM_THREADS", "0")) or (os.cpu_count() or 1)
    cache_dir = settings.data_dir / "cache"
    importer = AnyImporter(
        importers={
            ModelFormat.ONNX: OnnxImporter(),
            ModelFormat.TFLITE: TfliteImporter(),
            ModelFormat.PT2: Pt2Importer(),
        }
    )
    node_passes: list[NodePass] = [LowRankPass(), PrecisionPass(), SparsityPass(), ClusteringPass()]
    network_passes: list[NetworkPass] = [ResolutionPass(), DepthPruningPass()]
    quantizer = StaticQuantizationPass()
    onnx = OnnxExporter(quantizer=quantizer)
    litert = LitertEvaluator(threads=threads)
    graph_passes: list[GraphPass] = [*node_passes, *network_passes, EqualizationPass()]
    return WorkHandlers(
        importer=importer,
        recipes=RecipeWork(
            steps=GraphSteps(
                pruning=StructuredPruningPass(), passes={item.name: item for item in graph_passes}
            ),
            inspector=OnnxGraphInspector(),
            trainer=TorchTrainer(threads=threads),
            exporters={
                ModelFormat.ONNX: onnx,
                ModelFormat.TFLITE: TfliteExporter(),
                ModelFormat.C_ARRAY: CArrayExporter(tflite=TfliteExporter()),
                ModelFormat.OPENVINO: OpenvinoExporter(onnx=onnx),
                ModelFormat.EXECUTORCH: ExecutorchExporter(quantizer=quantizer),
            },
            evaluators={
                ModelFormat.ONNX: OnnxRuntimeEvaluator(threads=threads),
                ModelFormat.TFLITE: litert,
                ModelFormat.C_ARRAY: CArrayEvaluator(tflite=litert),
                ModelFormat.OPENVINO: OpenvinoEvaluator(split=network_and_weights, threads=threads),
                ModelFormat.EXECUTORCH: ExecutorchEvaluator(),
            },
        ),
        node_passes={item.name: item for item in node_passes},
        network_passes={item.name: item for item in network_passes},
        datasets=ArchiveDatasetReader(cache_dir=cache_dir / "arrays"),
        cache_dir=cache_dir,
        synthesizer=NetworkSynthesizer(),
        precision_probe=precision_sensitivity,
    )


def missing_extras() -> dict[ModelFormat, str]:
    """Return the output formats whose libraries are not installed, and the extras that bring them."""
    return {
        model_format: f"tightfit-service[{extra}]"
        for model_format, (extra, package) in EXTRAS.items()
        if util.find_spec(package) is None
    }


def tool_versions() -> dict[str, str]:
    """Return the versions of what computes results, for recipes."""
    versions = {}
    for package in REPORTED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def configure_logging(settings: Settings) -> None:
    """Write structured log lines to stderr in the chosen form."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def open_records(settings: Settings) -> Engine:
    """Return the database of the settings; its folder is made where it is SQLite."""
    if not settings.database_url:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    return open_database(
        settings.database_url or f"sqlite:///{settings.data_dir.resolve() / 'state.db'}",
        pool_size=settings.database_pool_size,
        statement_seconds=settings.database_statement_seconds,
    )


def default_quota(settings: Settings) -> Quota:
    """Return the quota of projects that have none of their own."""
    return Quota(
        running_jobs=settings.quota_running_jobs,
        queued_jobs=settings.quota_queued_jobs,
        trials=settings.quota_trials,
        stored_bytes=settings.quota_stored_bytes,
    )


def _lock(data_dir: Path) -> TextIO:
    """Take the data folder for this process.

    Raises:
        UnavailableError: Another server works on it.
    """
    opened = (data_dir / "lock").open("w")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        opened.close()
        raise UnavailableError(
            f"another server works on {data_dir}",
            field="data_dir",
            remedy="stop it, or talk to it with --server, or give another --data-dir",
        ) from error
    return opened


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


def _storage(settings: Settings) -> tuple[ArtifactStores, UploadStaging]:
    if settings.artifact_store == "folder":
        shared = Path(settings.artifact_dir or settings.data_dir)
        folder = FolderArtifactStores(root=shared / "artifacts", link_sources=True)
        return folder, FolderUploadStaging(root=shared / "uploads", artifacts=folder)
    options = S3Options(
        url=settings.s3_url,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        access_key_file=settings.s3_access_key_file or None,
        secret_key_file=settings.s3_secret_key_file or None,
        region=settings.s3_region,
        ca_file=settings.s3_ca_file or None,
        addressing=settings.s3_addressing,
        encryption=settings.s3_encryption,
        kms_key_id=settings.s3_kms_key_id,
        public_url=settings.s3_public_url,
    )
    bucket = S3Bucket(options=options, name=settings.s3_bucket)
    bucket.ensure(prefix=settings.s3_prefix)
    offers_urls = settings.s3_presigned_urls
    stores = S3ArtifactStores(bucket=bucket, prefix=settings.s3_prefix, offers_urls=offers_urls)
    return stores, S3UploadStaging(artifacts=stores, offers_urls=offers_urls)


def _start_traces(settings: Settings) -> Callable[[], None]:
    """Send traces where the settings want them, and return what sends the rest of them at the end.

    Raises:
        UnsupportedError: The libraries for it are not installed.
    """
    if not settings.traces_endpoint:
        return lambda: None
    try:
        from tightfit_service.adapters.telemetry.otel import otlp_tracer

        tracer = otlp_tracer(
            settings.traces_endpoint,
            version=metadata.version("tightfit-service"),
            instance=socket.gethostname(),
        )
    except ImportError as error:
        raise UnsupportedError(
            "what sends traces is not installed where this server runs",
            field="traces_endpoint",
            remedy="install tightfit-service[otel], or leave the setting empty",
        ) from error
    use_tracer(tracer)
    return tracer.close


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
        exposure=_exposure(settings),
        versions=tool_versions(),
        signing_key_id=lambda: key_id(
            open_signing_key(_keys_dir(settings), key_file=_key_file(settings)).public_key()
        ),
        workers=executor.check if executor is not None else None,
    )
    return Diagnosis(checks, clock=clock)


def create_admin_key(settings: Settings, *, display_name: str, valid_days: float) -> str:
    """Store a key that opens everything, and return its token, which is never shown again.

    Raises:
        TightfitError: The database cannot be used, or the name is unfit.
    """
    migrate(settings)
    clock = SystemClock()
    engine = open_records(settings)
    try:
        return make_admin_key(
            engine=engine,
            clock=clock,
            display_name=display_name,
            expire_time=clock.now() + timedelta(days=valid_days) if valid_days else None,
        )
    finally:
        engine.dispose()


def _access(settings: Settings, engine: Engine, clock: SystemClock) -> Access:
    oidc = None
    if settings.oidc_issuer:
        oidc = OidcSettings(
            issuer=settings.oidc_issuer,
            audience=settings.oidc_audience,
            algorithms=tuple(filter(None, settings.oidc_algorithms.replace(",", " ").split())),
            roles_claim=settings.oidc_roles_claim,
            leeway_seconds=settings.oidc_leeway_seconds,
        )
    return open_access(
        engine=engine,
        clock=clock,
        required=settings.auth_required,
        policy_file=settings.access_policy_file,
        oidc=oidc,
        jwks_url=settings.oidc_jwks_url,
        jwks_file=settings.oidc_jwks_file,
    )


def _exposure(settings: Settings) -> Exposure:
    certificate = Path(settings.tls_cert_file)
    ends = {"grpc": lambda: certificate_end(certificate.read_bytes())}
    return Exposure(
        listen=settings.listen,
        has_tls=bool(settings.tls_cert_file),
        asks_who_calls=settings.auth_required,
        certificates=ends if settings.tls_cert_file else {},
    )


def _credentials(
    settings: Settings, telemetry: PrometheusTelemetry
) -> grpc.ServerCredentials | None:
    files = open_tls(
        certificate=settings.tls_cert_file,
        key=settings.tls_key_file,
        client_ca=settings.tls_client_ca_file,
        on_read=lambda end: telemetry.certificate_expires("grpc", end),
    )
    return server_credentials(files) if files is not None else None


def _collector(
    settings: Settings,
    engine: Engine,
    artifacts: ArtifactStores,
    staging: UploadStaging,
    telemetry: PrometheusTelemetry,
) -> Collector:
    return Collector(
        artifacts=artifacts,
        staging=staging,
        records=SqlStore(engine=engine),
        results=SqlResultExpiry(engine=engine),
        clock=SystemClock(),
        telemetry=telemetry,
        policy=CollectionPolicy(
            grace=timedelta(seconds=settings.gc_grace_seconds),
            upload_age=timedelta(seconds=settings.gc_upload_seconds),
            result_age=timedelta(seconds=settings.gc_result_seconds),
            interval=timedelta(seconds=settings.gc_interval_seconds),
        ),
    )


def _metrics_port(settings: Settings, telemetry: PrometheusTelemetry) -> MetricsPort | None:
    if not settings.metrics_listen:
        return None
    host, _, port = settings.metrics_listen.rpartition(":")
    return MetricsPort(registry=telemetry.registry, host=host, port=int(port))


def catalogue() -> TargetCatalogue:
    """Return the hardware targets that come with the service."""
    return YamlTargetCatalogue()


def emulators() -> tuple[Emulator, ...]:
    """Return the emulators, the most specific first."""
    return (
        McuEmulator(),
        EspEmulator(),
        ETHOS_U_EMULATOR,
        EDGE_TPU_EMULATOR,
        NPU_EMULATOR,
        HEXAGON_EMULATOR,
        GPU_EMULATOR,
        RooflineEmulator(),
    )
