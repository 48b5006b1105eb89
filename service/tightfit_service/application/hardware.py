"""Targets by name or description, and estimates of uploaded models on them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tightfit_service.application.assets import MODEL, import_unit
from tightfit_service.application.costing import CostModel, select_emulator
from tightfit_service.application.plain import from_plain
from tightfit_service.application.ports import (
    AssetStore,
    Emulator,
    Executor,
    JobStore,
    Page,
    TargetCatalogue,
    Telemetry,
)
from tightfit_service.application.units import run_cached
from tightfit_service.application.work import ModelFacts
from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.hardware import HardwareSpec, NumberFormat


class HardwareLibrary:
    """Implements `use_cases.Hardware`."""

    def __init__(
        self,
        *,
        catalogue: TargetCatalogue,
        emulators: Sequence[Emulator],
        records: AssetStore,
        results: JobStore,
        executor: Executor,
        telemetry: Telemetry,
    ) -> None:
        self._catalogue = catalogue
        self._emulators = emulators
        self._records = records
        self._results = results
        self._executor = executor
        self._telemetry = telemetry

    def resolve(self, target: str | Mapping[str, Any]) -> HardwareSpec:
        """Return the target of that name, or the described one completed from its core's class.

        Raises:
            NotFoundError: No such name.
            InvalidTargetError: The description cannot be used.
        """
        if isinstance(target, str):
            return self._catalogue.get(target)
        return self._catalogue.complete(target)

    def cost_model(self, target: HardwareSpec) -> CostModel:
        """Return the emulator for the target, bound to it.

        Raises:
            UnsupportedError: No emulator has a model of its core.
        """
        emulator = select_emulator(self._emulators, target)
        return CostModel(emulator=emulator, target=target, telemetry=self._telemetry)

    async def get_target(self, name: str) -> HardwareSpec:
        """Return a target of the catalogue."""
        return self._catalogue.get(name)

    async def list_targets(self, page: Page) -> Sequence[HardwareSpec]:
        """Return targets by name."""
        names = [spec for spec in self._catalogue.list() if spec.name > page.after]
        return names[: page.size]

    async def model_facts(self, project: str, model: str) -> tuple[str, ModelFacts, str]:
        """Return the digest of a model's file, its facts, and the digest of its working graph."""
        record = await asyncio.to_thread(self._records.get_asset, project, MODEL, model)
        facts, graph_digest = await self.facts_of_digest(record.digest)
        return record.digest, facts, graph_digest

    async def facts_of_digest(self, digest: str) -> tuple[ModelFacts, str]:
        """Return the facts of an uploaded model file and the digest of its working graph."""
        result = await run_cached(
            import_unit(digest),
            executor=self._executor,
            store=self._results,
            telemetry=self._telemetry,
        )
        return from_plain(ModelFacts, result.payload), result.outputs["graph"]

    async def estimate(
        self, project: str, *, model: str, target: str | Mapping[str, Any]
    ) -> tuple[HardwareSpec, Mapping[str, CostEstimate]]:
        """Return the target and the model's cost there, per number format that it computes in."""
        spec = self.resolve(target)
        costs = self.cost_model(spec)
        _, facts, _ = await self.model_facts(project, model)
        formats = [NumberFormat.FLOAT32]
        if NumberFormat.INT8 in spec.number_formats:
            formats.append(NumberFormat.INT8)
        return spec, {str(f): costs.estimate(facts.profile, f) for f in formats}
