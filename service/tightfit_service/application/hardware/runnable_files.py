"""Uploaded models that devices run as they are: what the very file costs, where more is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tightfit_service.application.assets.imported_models import ImportedModel
from tightfit_service.application.costs.costing import CostModel
from tightfit_service.application.costs.files import compiled_cost
from tightfit_service.application.ports import ArtifactStores, FileEmulator
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import InvalidModelError, UnsupportedError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat


@dataclass(frozen=True, kw_only=True)
class RunnableFile:
    """A file that a device runs as it is.

    Attributes:
        number_format: That it computes in.
        size_bytes: None where the file is gone.
    """

    digest: str
    number_format: NumberFormat
    size_bytes: int | None


class RunnableFiles:
    """Costs files by what goes through the very file: tools of the target's runtime, and its compiler."""

    def __init__(
        self,
        *,
        artifacts: ArtifactStores,
        units: CachedUnits,
        file_emulators: Sequence[FileEmulator] = (),
    ) -> None:
        """Keep where files are, where compilers run, and the tools of runtimes."""
        self._artifacts = artifacts
        self._units = units
        self._tools = file_emulators

    async def find(self, project: str, model: ImportedModel) -> RunnableFile | None:
        """Return the file of an uploaded model; None unless it is a TFLite file."""
        if model.facts.source_format is not ModelFormat.TFLITE:
            return None
        size = await asyncio.to_thread(self._artifacts.of(project).size, model.digest)
        own = NumberFormat.INT8 if model.facts.is_quantized else NumberFormat.FLOAT32
        return RunnableFile(digest=model.digest, number_format=own, size_bytes=size)

    async def refined(
        self, project: str, file: RunnableFile, costs: CostModel, cost: CostEstimate
    ) -> CostEstimate:
        """Return the estimate with what is known of the very file; warnings say what could not be known."""
        cost = await asyncio.to_thread(self._by_runtime, project, file, costs.target, cost)
        return await self._by_compiler(project, file, costs, cost)

    def _by_runtime(
        self, project: str, file: RunnableFile, target: HardwareSpec, cost: CostEstimate
    ) -> CostEstimate:
        tools = [tool for tool in self._tools if tool.supports(target)]
        if not tools:
            return cost
        data = b"".join(self._artifacts.of(project).read(file.digest))
        for tool in tools:
            try:
                cost = tool.refine(data, target, cost)
            except (InvalidModelError, UnsupportedError) as error:
                cost = replace(cost, warnings=(*cost.warnings, error.message))
        return cost

    async def _by_compiler(
        self, project: str, file: RunnableFile, costs: CostModel, cost: CostEstimate
    ) -> CostEstimate:
        found, problem = await compiled_cost(
            costs,
            cost,
            run=self._units.run,
            project=project,
            digest=file.digest,
            model_format=ModelFormat.TFLITE,
            label=f"cost of {file.digest[:12]}",
        )
        if found is not None:
            return found
        return replace(cost, warnings=(*cost.warnings, problem)) if problem else cost
