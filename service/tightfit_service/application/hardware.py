"""Targets by name or description, and estimates of uploaded models on them."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from tightfit_service.application.assets import MODEL, import_unit
from tightfit_service.application.costing import CostModel, select_emulator
from tightfit_service.application.file_costing import compiled_cost
from tightfit_service.application.import_work import IMPORT_MODEL
from tightfit_service.application.model_facts import ModelFacts
from tightfit_service.application.ports import (
    ArtifactStores,
    AssetStore,
    CalibrationStore,
    Clock,
    DeviceCompiler,
    Emulator,
    EmulatorFitter,
    Executor,
    FileEmulator,
    JobStore,
    Page,
    TargetCatalogue,
    TargetRecord,
    TargetStore,
    Telemetry,
)
from tightfit_service.application.units import run_cached
from tightfit_service.application.use_cases import KnownTarget
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidModelError,
    InvalidTargetError,
    NotFoundError,
    ResourceExhaustedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import (
    Fallback,
    HardwareSpec,
    ModelFormat,
    NumberFormat,
    Runtime,
)
from tightfit_service.domain.layer_table import parse_one_network

FITTED_EMULATORS = 32
"""Corrected emulators that are kept fitted; a fit takes seconds."""
MAX_TARGETS_PER_PROJECT = 1_000


class HardwareLibrary:
    """Implements `use_cases.Hardware`."""

    def __init__(
        self,
        *,
        catalogue: TargetCatalogue,
        targets: TargetStore,
        emulators: Sequence[Emulator],
        records: AssetStore,
        results: JobStore,
        executor: Executor,
        clock: Clock,
        telemetry: Telemetry,
        artifacts: ArtifactStores | None = None,
        file_emulators: Sequence[FileEmulator] = (),
        compilers: Sequence[DeviceCompiler] = (),
        calibrations: CalibrationStore | None = None,
        fitter: EmulatorFitter | None = None,
    ) -> None:
        self._calibrations = calibrations
        self._fitter = fitter
        self._fitted: dict[tuple[str, HardwareSpec, datetime], Emulator] = {}
        self._catalogue = catalogue
        self._artifacts = artifacts
        self._file_emulators = file_emulators
        self._compilers = compilers
        self._targets = targets
        self._emulators = emulators
        self._records = records
        self._results = results
        self._executor = executor
        self._clock = clock
        self._telemetry = telemetry

    async def resolve(self, project: str, target: str | Mapping[str, Any]) -> HardwareSpec:
        """Return the target of that name, or the described one completed from its classes.

        Raises:
            NotFoundError: No such name, neither of the project nor in the catalogue.
            InvalidTargetError: The description cannot be used.
        """
        if isinstance(target, str):
            return (await self.get_target(project, target)).spec
        return self._catalogue.complete(target)

    async def cost_model(self, project: str, target: HardwareSpec) -> CostModel:
        """Return the emulator for the target, corrected where the project has calibrated it.

        Raises:
            UnsupportedError: No emulator has a model of its core.
        """
        plain = self.plain_cost_model(target)
        if self._calibrations is None or self._fitter is None or not project:
            return plain
        name = (project, target.name, target.runtime.name)
        # asked for by every estimate, while what a calibration is made from is megabytes
        made = await asyncio.to_thread(self._calibrations.calibration_time, *name)
        if made is None:
            return plain
        key = (project, target, made)
        if key not in self._fitted:
            calibration = await asyncio.to_thread(self._calibrations.find_calibration, *name)
            if calibration is None:
                return plain
            key = (project, target, calibration.create_time)
            fitted = await asyncio.to_thread(
                self._fitter.fit,
                plain.emulator,
                target,
                calibration.observations,
                calibration.learned,
            )
            if len(self._fitted) >= FITTED_EMULATORS:
                self._fitted.pop(next(iter(self._fitted)))
            self._fitted[key] = fitted
        # what a device measured goes before what a compiler computes
        return replace(plain, emulator=self._fitted[key], compiler=None)

    def plain_cost_model(self, target: HardwareSpec) -> CostModel:
        """Return the emulator for the target as it comes, bound to it.

        Raises:
            UnsupportedError: No emulator has a model of its core.
        """
        emulator = select_emulator(self._emulators, target)
        return CostModel(
            emulator=emulator,
            target=target,
            telemetry=self._telemetry,
            compiler=next((c for c in self._compilers if c.covers(target)), None),
        )

    async def get_target(self, project: str, name: str) -> KnownTarget:
        """Return the project's target of that name, or else the catalogue's."""
        if project:
            with contextlib.suppress(NotFoundError):
                record = await asyncio.to_thread(self._targets.get_target, project, name)
                return self._of_record(record)
        try:
            return self._known(self._catalogue.get(name))
        except NotFoundError as error:
            raise await self._with_near_names(error, project, name) from error

    async def list_targets(self, project: str, page: Page) -> Sequence[KnownTarget]:
        """Return the targets of the project and of the catalogue by name."""
        found = {
            spec.name: self._known(spec)
            for spec in self._catalogue.list()
            if spec.name > page.after
        }
        if project:
            own = await asyncio.to_thread(self._targets.list_targets, project, page)
            found.update({record.spec.name: self._of_record(record) for record in own})
        return [found[name] for name in sorted(found)][: page.size]

    async def create_target(
        self, project: str, description: Mapping[str, Any], *, validate_only: bool = False
    ) -> KnownTarget:
        """Complete a description and store it as a target of the project."""
        spec = self._catalogue.complete(description)
        if not description.get("name"):
            raise InvalidTargetError(
                "the description has no name",
                field="target.name",
                remedy="give it one, by which jobs can ask for the target",
            )
        with contextlib.suppress(NotFoundError):
            self._catalogue.get(spec.name)
            raise AlreadyExistsError(
                f"the catalogue has a hardware target {spec.name!r}",
                field="target.name",
                remedy="choose another name",
            )
        record = TargetRecord(project=project, spec=spec, create_time=self._clock.now())
        if not validate_only:
            await self._check_room(project)
            record = await asyncio.to_thread(self._targets.add_target, record)
        return self._of_record(record)

    async def delete_target(self, project: str, name: str) -> None:
        """Remove a target of the project."""
        await asyncio.to_thread(self._targets.delete_target, project, name)
        if self._calibrations is not None:
            await asyncio.to_thread(self._calibrations.delete_calibration, project, name)

    async def _with_near_names(
        self, error: NotFoundError, project: str, name: str
    ) -> NotFoundError:
        """Return the error with targets of the project in its remedy, where their names are near."""
        page = Page(size=MAX_TARGETS_PER_PROJECT)
        own = await asyncio.to_thread(self._targets.list_targets, project, page) if project else ()
        near = difflib.get_close_matches(name, [record.spec.name for record in own], n=2)
        if not near:
            return error
        remedy = f"did you mean {' or '.join(near)}, which this project described?"
        return NotFoundError(error.message, field=error.field, remedy=remedy)

    async def _check_room(self, project: str) -> None:
        page = Page(size=MAX_TARGETS_PER_PROJECT)
        own = await asyncio.to_thread(self._targets.list_targets, project, page)
        if len(own) >= MAX_TARGETS_PER_PROJECT:
            raise ResourceExhaustedError(
                f"the project has {len(own)} hardware targets of its own, which is the most",
                field="parent",
                remedy="delete those that are not needed any more, or send the description with the job",
            )

    def _of_record(self, record: TargetRecord) -> KnownTarget:
        known = self._known(record.spec)
        return replace(known, project=record.project, create_time=record.create_time)

    def _known(self, spec: HardwareSpec) -> KnownTarget:
        covering = (item.name for item in self._emulators if item.supports(spec))
        return KnownTarget(spec=spec, emulator=next(covering, ""))

    async def model_facts(self, project: str, model: str) -> tuple[str, ModelFacts, str]:
        """Return the digest of a model's file, its facts, and the digest of its working graph."""
        record = await asyncio.to_thread(self._records.get_asset, project, MODEL, model)
        facts, graph_digest = await self.facts_of_digest(project, record.digest)
        return record.digest, facts, graph_digest

    async def facts_of_digest(self, project: str, digest: str) -> tuple[ModelFacts, str]:
        """Return the facts of an uploaded model file and the digest of its working graph."""
        result = await run_cached(
            import_unit(project, digest),
            executor=self._executor,
            store=self._results,
            telemetry=self._telemetry,
        )
        return IMPORT_MODEL.outcome(result), result.outputs["graph"]

    async def estimate(
        self,
        project: str,
        *,
        target: str | Mapping[str, Any],
        model: str = "",
        layer_table: str = "",
        runtime: Runtime | None = None,
    ) -> tuple[HardwareSpec, Mapping[str, CostEstimate]]:
        """Return the target and the network's cost there, per number format that it computes in.

        The network is an uploaded model or a layer table. `runtime` replaces the target's own.

        Raises:
            InvalidModelError: The layer table cannot be used.
        """
        spec = await self.resolve(project, target)
        if runtime is not None:
            assumed = tuple(name for name in spec.assumed_fields if name != "runtime")
            spec = replace(spec, runtime=runtime, assumed_fields=assumed)
        costs = await self.cost_model(project, spec)
        facts, digest = None, ""
        if layer_table:
            profile = parse_one_network(layer_table)
        else:
            digest, facts, _ = await self.model_facts(project, model)
            profile = facts.profile
        formats = [NumberFormat.FLOAT32] if _takes_float(spec) else []
        if NumberFormat.INT8 in spec.number_formats:
            formats.append(NumberFormat.INT8)
        own_format, size = await asyncio.to_thread(self._tflite_file, project, facts, digest)
        found = {
            str(f): costs.estimate(profile, f, file_bytes=size if f is own_format else None)
            for f in formats
        }
        if own_format is NumberFormat.INT8 and NumberFormat.INT8 in found:
            refined = await asyncio.to_thread(
                self._refined, project, digest, spec, found[NumberFormat.INT8]
            )
            found[NumberFormat.INT8] = await self._compiled(project, digest, costs, refined)
        return spec, found

    def _tflite_file(
        self, project: str, facts: ModelFacts | None, digest: str
    ) -> tuple[NumberFormat | None, int | None]:
        """Return the number format and the bytes of a model that is a TFLite file, which runs as it is."""
        if (
            facts is None
            or facts.source_format is not ModelFormat.TFLITE
            or self._artifacts is None
        ):
            return None, None
        own = NumberFormat.INT8 if facts.is_quantized else NumberFormat.FLOAT32
        return own, self._artifacts.of(project).size(digest)

    def _refined(
        self, project: str, digest: str, spec: HardwareSpec, cost: CostEstimate
    ) -> CostEstimate:
        """Return the estimate with what the tools of the target's runtime make of the very file."""
        tools = [tool for tool in self._file_emulators if tool.supports(spec)]
        if not tools or self._artifacts is None:
            return cost
        data = b"".join(self._artifacts.of(project).read(digest))
        for tool in tools:
            try:
                cost = tool.refine(data, spec, cost)
            except (InvalidModelError, UnsupportedError) as error:
                cost = replace(cost, warnings=(*cost.warnings, error.message))
        return cost

    async def _compiled(
        self, project: str, digest: str, costs: CostModel, cost: CostEstimate
    ) -> CostEstimate:
        """Return what the compiler of the target says of the very file, or else the estimate and why."""
        found, problem = await compiled_cost(
            costs,
            cost,
            run=lambda unit: run_cached(
                unit, executor=self._executor, store=self._results, telemetry=self._telemetry
            ),
            project=project,
            digest=digest,
            model_format=ModelFormat.TFLITE,
            label=f"cost of {digest[:12]}",
        )
        if found is not None:
            return found
        return replace(cost, warnings=(*cost.warnings, problem)) if problem else cost


def _takes_float(spec: HardwareSpec) -> bool:
    """Whether float32 networks run there as such, on the accelerator or on the cores."""
    accelerator = spec.accelerator
    return (
        accelerator is None
        or accelerator.fallback is not Fallback.REFUSED
        or NumberFormat.FLOAT32 in spec.number_formats
    )
