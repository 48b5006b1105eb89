"""The use cases that the API calls, each composed of what a server holds."""

from __future__ import annotations

import socket
import uuid
from dataclasses import dataclass
from importlib import metadata

from tightfit_service.adapters.emulators.calibrated import ProcessFitter
from tightfit_service.adapters.emulators.tflm_interpreter import TflmArena
from tightfit_service.adapters.emulators.vela import VelaCompiler
from tightfit_service.adapters.provenance.dsse import Ed25519Signer
from tightfit_service.adapters.provenance.file_digests import ZipFileSets
from tightfit_service.adapters.provenance.signing_key import open_signing_key
from tightfit_service.adapters.storage.sql_calibrations import SqlCalibrationStore
from tightfit_service.adapters.storage.sql_queue import SqlJobQueue
from tightfit_service.adapters.storage.sql_targets import SqlTargetStore
from tightfit_service.adapters.storage.sql_unit_claims import SqlUnitClaims
from tightfit_service.application.assets.imported_models import ImportedModels
from tightfit_service.application.assets.library import AssetLibrary
from tightfit_service.application.assets.quotas import Quotas
from tightfit_service.application.costs.models import CostModels, FittedEmulators
from tightfit_service.application.hardware.calibration import DeviceCalibrator
from tightfit_service.application.hardware.library import HardwareLibrary
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.hardware.runnable_files import RunnableFiles
from tightfit_service.application.jobs.desk import JobDesk
from tightfit_service.application.jobs.requests import JobRequests, OutputFormats
from tightfit_service.application.jobs.running import JobRunner
from tightfit_service.application.runners.desk import RunnerDesk
from tightfit_service.application.scheduling.journal import EventHub
from tightfit_service.application.scheduling.scheduler import JobScheduler, ReplicaOptions
from tightfit_service.application.trials.provenance import Provenance
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.units.claims import UnitClaimer
from tightfit_service.bootstrap.hardware import catalogue, emulators, missing_extras, tool_versions
from tightfit_service.bootstrap.keys import keys_dir, signing_key_file
from tightfit_service.bootstrap.resources import Resources
from tightfit_service.bootstrap.storage import default_quota
from tightfit_service.domain.hardware import ModelFormat
from tightfit_service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """What several use cases look things up in."""

    units: CachedUnits
    models: ImportedModels
    costs: CostModels
    hardware: HardwareLibrary


def make_libraries(settings: Settings, resources: Resources) -> Libraries:
    """Compose what knows models, targets, and what models cost on them."""
    units = CachedUnits(
        executor=resources.executor,
        store=resources.store,
        telemetry=resources.telemetry,
        claimer=_claimer(settings, resources) if settings.database_url else None,
    )
    models = ImportedModels(records=resources.store, units=units)
    costs = CostModels(
        emulators=emulators(),
        telemetry=resources.telemetry,
        compilers=(VelaCompiler(),),
        fitted=FittedEmulators(
            calibrations=SqlCalibrationStore(engine=resources.engine), fitter=ProcessFitter()
        ),
    )
    hardware = HardwareLibrary(
        catalogue=catalogue(),
        targets=SqlTargetStore(engine=resources.engine),
        clock=resources.clock,
        costs=costs,
        models=models,
        files=RunnableFiles(
            artifacts=resources.artifacts, units=units, file_emulators=(TflmArena(),)
        ),
    )
    return Libraries(units=units, models=models, costs=costs, hardware=hardware)


def _claimer(settings: Settings, resources: Resources) -> UnitClaimer:
    return UnitClaimer(
        claims=SqlUnitClaims(engine=resources.engine),
        owner=f"{_replica_name(settings)}/{uuid.uuid4().hex[:8]}",
        seconds=settings.lease_seconds,
    )


def _replica_name(settings: Settings) -> str:
    return settings.replica_name or socket.gethostname()


def make_runners(resources: Resources) -> RunnerDesk:
    """Compose what devices that measure report to."""
    return RunnerDesk(
        clock=resources.clock,
        telemetry=resources.telemetry.runners,
        resolve_target=catalogue().get,
        server_version=metadata.version("tightfit-service"),
    )


def make_calibrator(
    resources: Resources, libraries: Libraries, *, measurements: DeviceMeasurements
) -> DeviceCalibrator:
    """Compose what corrects estimates by measurements."""
    return DeviceCalibrator(
        hardware=libraries.hardware,
        costs=libraries.costs,
        units=libraries.units,
        measurements=measurements,
        fitter=ProcessFitter(),
        calibrations=SqlCalibrationStore(engine=resources.engine),
        clock=resources.clock,
    )


def make_assets(
    settings: Settings, resources: Resources, libraries: Libraries, *, quotas: Quotas
) -> AssetLibrary:
    """Compose what takes models and datasets in."""
    return AssetLibrary(
        quotas=quotas,
        staging=resources.staging,
        artifacts=resources.artifacts,
        records=resources.store,
        units=libraries.units,
        clock=resources.clock,
        telemetry=resources.telemetry,
        max_bytes=settings.max_upload_bytes,
    )


def make_scheduler(
    settings: Settings,
    resources: Resources,
    libraries: Libraries,
    *,
    measurements: DeviceMeasurements,
    hub: EventHub,
) -> JobScheduler:
    """Compose what takes jobs from the queue and runs them."""
    return JobScheduler(
        store=resources.store,
        queue=SqlJobQueue(engine=resources.engine),
        run_job=_job_runner(settings, resources, libraries, measurements),
        hub=hub,
        clock=resources.clock,
        telemetry=resources.telemetry,
        concurrent_jobs=settings.concurrent_jobs,
        replica=ReplicaOptions(
            name=_replica_name(settings),
            lease_seconds=settings.lease_seconds,
            # the lock on the folder keeps every other server from the database in it
            is_alone=not settings.database_url,
            quota=default_quota(settings),
        ),
    )


def make_jobs(
    resources: Resources,
    libraries: Libraries,
    *,
    quotas: Quotas,
    scheduler: JobScheduler,
    hub: EventHub,
) -> JobDesk:
    """Compose what takes jobs and tells of them."""
    requests = JobRequests(
        hardware=libraries.hardware,
        costs=libraries.costs,
        models=libraries.models,
        records=resources.store,
        units=libraries.units,
        formats=OutputFormats(
            missing_extras=missing_extras(),
            target_checks={ModelFormat.VELA: VelaCompiler().check},
        ),
    )
    return JobDesk(
        jobs=resources.store,
        requests=requests,
        quotas=quotas,
        scheduler=scheduler,
        hub=hub,
        clock=resources.clock,
        telemetry=resources.telemetry,
    )


def _job_runner(
    settings: Settings,
    resources: Resources,
    libraries: Libraries,
    measurements: DeviceMeasurements,
) -> JobRunner:
    key = open_signing_key(keys_dir(settings), key_file=signing_key_file(settings))
    return JobRunner(
        store=resources.store,
        costs=libraries.costs,
        models=libraries.models,
        units=libraries.units,
        clock=resources.clock,
        telemetry=resources.telemetry,
        tool_versions=tool_versions(),
        # a job alone takes all workers; with several at a time each has its share
        parallel_trials=max(1, settings.worker_count // settings.concurrent_jobs),
        measurements=measurements,
        provenance=Provenance(
            signer=Ed25519Signer(key),
            artifacts=resources.artifacts,
            file_sets=ZipFileSets(),
            scratch_dir=settings.data_dir.resolve() / "scratch",
        ),
    )
