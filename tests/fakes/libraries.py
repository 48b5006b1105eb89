"""What use cases look things up in, composed over fakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fakes.artifacts import InMemoryArtifactStores
from fakes.clock import FakeClock
from fakes.linear_emulator import LinearEmulator
from fakes.stores import InMemoryStore
from fakes.target_store import InMemoryTargetStore
from fakes.telemetry import RecordingTelemetry
from tightfit_service.application.assets.imported_models import ImportedModels
from tightfit_service.application.costs.models import CostModels, FittedEmulators
from tightfit_service.application.hardware.library import HardwareLibrary
from tightfit_service.application.hardware.runnable_files import RunnableFiles
from tightfit_service.application.ports import (
    ArtifactStores,
    DeviceCompiler,
    Emulator,
    Executor,
    FileEmulator,
    TargetCatalogue,
)
from tightfit_service.application.units.cached import CachedUnits


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """As those of a server."""

    units: CachedUnits
    models: ImportedModels
    costs: CostModels
    hardware: HardwareLibrary


def make_libraries(
    *,
    store: InMemoryStore,
    executor: Executor,
    catalogue: TargetCatalogue,
    emulators: Sequence[Emulator] = (LinearEmulator(),),
    compilers: Sequence[DeviceCompiler] = (),
    fitted: FittedEmulators | None = None,
    artifacts: ArtifactStores | None = None,
    file_emulators: Sequence[FileEmulator] = (),
) -> Libraries:
    telemetry = RecordingTelemetry()
    units = CachedUnits(executor=executor, store=store, telemetry=telemetry)
    models = ImportedModels(records=store, units=units)
    costs = CostModels(emulators=emulators, telemetry=telemetry, compilers=compilers, fitted=fitted)
    hardware = HardwareLibrary(
        catalogue=catalogue,
        targets=InMemoryTargetStore(),
        clock=FakeClock(),
        costs=costs,
        models=models,
        files=RunnableFiles(
            artifacts=artifacts or InMemoryArtifactStores(),
            units=units,
            file_emulators=file_emulators,
        ),
    )
    return Libraries(units=units, models=models, costs=costs, hardware=hardware)
