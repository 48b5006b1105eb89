"""Targets by name or description, and estimates of uploaded models on them."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tightfit_service.application.assets.imported_models import ImportedModels
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.costs.models import CostModels
from tightfit_service.application.hardware.runnable_files import RunnableFile, RunnableFiles
from tightfit_service.application.ports import (
    Clock,
    Page,
    TargetCatalogue,
    TargetRecord,
    TargetStore,
)
from tightfit_service.application.use_cases import KnownTarget
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import (
    AlreadyExistsError,
    InvalidTargetError,
    NotFoundError,
    ResourceExhaustedError,
)
from tightfit_service.domain.hardware import (
    Fallback,
    HardwareSpec,
    NumberFormat,
    Runtime,
)
from tightfit_service.domain.layer_table import parse_one_network
from tightfit_service.domain.network import NetworkProfile

MAX_TARGETS_PER_PROJECT = 1_000


class HardwareLibrary:
    """Implements `use_cases.Hardware`."""

    def __init__(
        self,
        *,
        catalogue: TargetCatalogue,
        targets: TargetStore,
        clock: Clock,
        costs: CostModels,
        models: ImportedModels,
        files: RunnableFiles,
    ) -> None:
        self._catalogue = catalogue
        self._targets = targets
        self._clock = clock
        self._costs = costs
        self._models = models
        self._files = files

    async def resolve(self, project: str, target: str | Mapping[str, Any]) -> HardwareSpec:
        """Return the target of that name, or the described one completed from its classes.

        Raises:
            NotFoundError: No such name, neither of the project nor in the catalogue.
            InvalidTargetError: The description cannot be used.
        """
        if isinstance(target, str):
            return (await self.get_target(project, target)).spec
        return self._catalogue.complete(target)

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
        await self._costs.forget(project, name)

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
        return KnownTarget(spec=spec, emulator=self._costs.emulator_name(spec))

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
        costs = await self._costs.of_project(project, spec)
        file = None
        if layer_table:
            profile = parse_one_network(layer_table)
        else:
            imported = await self._models.named(project, model)
            profile = imported.facts.profile
            file = await self._files.find(project, imported)
        return spec, await self._estimates(project, costs, profile, file)

    async def _estimates(
        self, project: str, costs: CostModel, profile: NetworkProfile, file: RunnableFile | None
    ) -> Mapping[str, CostEstimate]:
        """Return the cost per number format, in the one that `file` is in as that of the file."""
        target = costs.target
        formats = [NumberFormat.FLOAT32] if _takes_float(target) else []
        if NumberFormat.INT8 in target.number_formats:
            formats.append(NumberFormat.INT8)
        found: dict[str, CostEstimate] = {}
        for number_format in formats:
            own = file if file is not None and file.number_format is number_format else None
            cost = costs.estimate(
                profile, number_format, file_bytes=None if own is None else own.size_bytes
            )
            # tools of runtimes and compilers take quantized files only
            if own is not None and number_format is NumberFormat.INT8:
                cost = await self._files.refined(project, own, costs, cost)
            found[str(number_format)] = cost
        return found


def _takes_float(spec: HardwareSpec) -> bool:
    """Whether float32 networks run there as such, on the accelerator or on the cores."""
    accelerator = spec.accelerator
    return (
        accelerator is None
        or accelerator.fallback is not Fallback.REFUSED
        or NumberFormat.FLOAT32 in spec.number_formats
    )
