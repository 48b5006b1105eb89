"""The cost models of targets: an emulator each, corrected where a project has calibrated it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from tightfit_service.application.costs.costing import CostModel, select_emulator
from tightfit_service.application.ports import (
    CalibrationStore,
    DeviceCompiler,
    Emulator,
    EmulatorFitter,
    Telemetry,
)
from tightfit_service.domain.hardware import HardwareSpec

FITTED_EMULATORS = 32
"""Corrected emulators that are kept fitted; a fit takes seconds."""


class FittedEmulators:
    """Emulators corrected by what projects measured, fitted when they are first asked for."""

    def __init__(self, *, calibrations: CalibrationStore, fitter: EmulatorFitter) -> None:
        """Keep what was measured, and what fits an emulator to it."""
        self._calibrations = calibrations
        self._fitter = fitter
        self._fitted: dict[tuple[str, HardwareSpec, datetime], Emulator] = {}

    async def find(self, project: str, target: HardwareSpec, plain: Emulator) -> Emulator | None:
        """Return `plain` corrected for the target; None where the project has not calibrated it."""
        name = (project, target.name, target.runtime.name)
        # asked for by every estimate, while what a calibration is made from is megabytes
        made = await asyncio.to_thread(self._calibrations.calibration_time, *name)
        if made is None:
            return None
        key = (project, target, made)
        if key not in self._fitted:
            calibration = await asyncio.to_thread(self._calibrations.find_calibration, *name)
            if calibration is None:
                return None
            key = (project, target, calibration.create_time)
            fitted = await asyncio.to_thread(
                self._fitter.fit, plain, target, calibration.observations, calibration.learned
            )
            if len(self._fitted) >= FITTED_EMULATORS:
                self._fitted.pop(next(iter(self._fitted)))
            self._fitted[key] = fitted
        return self._fitted[key]

    async def forget(self, project: str, target_name: str) -> None:
        """Forget what the project measured on the target."""
        await asyncio.to_thread(self._calibrations.delete_calibration, project, target_name)


class CostModels:
    """Finds what predicts costs on a target."""

    def __init__(
        self,
        *,
        emulators: Sequence[Emulator],
        telemetry: Telemetry,
        compilers: Sequence[DeviceCompiler] = (),
        fitted: FittedEmulators | None = None,
    ) -> None:
        """Keep what predicts costs.

        Args:
            emulators: The most specific first.
            telemetry: Is told of every estimate.
            compilers: What files for some targets go through.
            fitted: Emulators that projects have corrected; None where nothing is calibrated.
        """
        self._emulators = emulators
        self._telemetry = telemetry
        self._compilers = compilers
        self._fitted = fitted

    async def of_project(self, project: str, target: HardwareSpec) -> CostModel:
        """Return the target's cost model, corrected where the project has calibrated the target.

        Raises:
            UnsupportedError: No emulator has a model of its core.
        """
        plain = self.plain(target)
        if self._fitted is None or not project:
            return plain
        fitted = await self._fitted.find(project, target, plain.emulator)
        # what a device measured goes before what a compiler computes
        return plain if fitted is None else replace(plain, emulator=fitted, compiler=None)

    def plain(self, target: HardwareSpec) -> CostModel:
        """Return the target's cost model as it comes.

        Raises:
            UnsupportedError: No emulator has a model of its core.
        """
        return CostModel(
            emulator=select_emulator(self._emulators, target),
            target=target,
            telemetry=self._telemetry,
            compiler=next((c for c in self._compilers if c.covers(target)), None),
        )

    def emulator_name(self, target: HardwareSpec) -> str:
        """Return the name of the emulator that covers the target; "" when none does."""
        return next((item.name for item in self._emulators if item.supports(target)), "")

    async def forget(self, project: str, target_name: str) -> None:
        """Forget what the project measured on the target."""
        if self._fitted is not None:
            await self._fitted.forget(project, target_name)
