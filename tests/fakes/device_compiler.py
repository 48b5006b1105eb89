"""A compiler of a target whose figures are simple enough to work out by hand."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from fakes.scripted_work import ScriptedExecutor
from tightfit_service.application.ports import (
    BeginCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
)
from tightfit_service.application.work.file_cost import FILE_COST, FileCostWork
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import InvalidModelError, TightfitError
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat
from tightfit_service.domain.quantities import Interval

SLOWER = {"a": 2.0, "b": 4.0}
"""Ratios to the emulator's figures, by node; others take as long as the emulator says."""
CALL_MS = 0.002
RAM_RATIO = 0.5
FLASH_RATIO = 0.8
MARGIN = 1.2


class FakeCompiler:
    """Layers take SLOWER, a call CALL_MS; half the RAM, 0.8 of the weights, latency +-20 %."""

    name = "fakec"
    remedy = "pip install fakec"

    def __init__(self, *, installed: bool = True) -> None:
        self.installed = installed
        self.version = "1.2" if installed else ""
        self.files: list[bytes] = []
        """What it was given."""
        self.refuses: Collection[int] = ()
        """Files that it does not take, counted from 1."""

    def covers(self, target: HardwareSpec) -> bool:
        return target.core == "cortex-m7"

    def supports(self, target: HardwareSpec) -> bool:
        return self.installed and self.covers(target)

    def refine(self, data: bytes, target: HardwareSpec, cost: CostEstimate) -> CostEstimate:
        assert self.supports(target)
        self.files.append(data)
        if len(self.files) in self.refuses:
            raise InvalidModelError("an operator is not known", field="model", remedy="none")
        layers = tuple(
            replace(
                layer,
                latency_ms=layer.latency_ms * SLOWER.get(layer.node, 1.0),
                energy_mj=layer.energy_mj * SLOWER.get(layer.node, 1.0),
            )
            for layer in cost.layers
        )
        latency = sum(layer.latency_ms for layer in layers) + CALL_MS
        return replace(
            cost,
            latency_ms=Interval.relative(latency, low_ratio=1 / MARGIN, high_ratio=MARGIN),
            energy_mj=Interval.exact(sum(layer.energy_mj for layer in layers)),
            peak_ram_bytes=cost.peak_ram_bytes.scaled(RAM_RATIO),
            flash_bytes=Interval.exact(
                FLASH_RATIO * sum(layer.weight_bytes for layer in cost.layers)
            ),
            layers=layers,
            provenance=f"{self.name} {self.version}: by hand",
            compiler=f"{self.name} {self.version}",
        )


class CompilingExecutor:
    """Implements `ports.Executor`: costs files, and leaves everything else to scripted work."""

    def __init__(self, inner: ScriptedExecutor, compiler: FakeCompiler, folder: Path) -> None:
        self._run = inner.run
        self._folder = folder
        self._handler = FileCostWork(
            compilers={compiler.name: compiler}, files={ModelFormat.TFLITE: bytes.upper}
        ).table()[FILE_COST.name]
        self.costed: list[WorkUnit] = []
        self.fail: dict[int, TightfitError] = {}
        """Errors of the units that cost files, counted from 1."""

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        if unit.kind != FILE_COST.name:
            return await self._run(unit, on_progress=on_progress, on_begin=on_begin)
        await on_begin()
        self.costed.append(unit)
        if (error := self.fail.get(len(self.costed))) is not None:
            raise error
        path = self._folder / unit.inputs["file"]
        path.write_text(unit.inputs["file"])
        payload, outputs = self._handler(unit.payload, {"file": path}, self._folder, on_progress)
        return WorkResult(payload=payload, outputs={name: str(at) for name, at in outputs.items()})
