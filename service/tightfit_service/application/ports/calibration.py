"""Correcting an emulator by what a device measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from tightfit_service.application.ports.hardware import Emulator
from tightfit_service.domain.calibration import Calibration, FitExamination, Observation
from tightfit_service.domain.hardware import HardwareSpec


@dataclass(frozen=True, kw_only=True)
class DesignedNetwork:
    """A network that is made to be measured.

    Attributes:
        label: Which kind of network it is.
        graph: Serialized ONNX, not yet in working form.
    """

    label: str
    graph: bytes


class CalibrationNetworks(Protocol):
    """The designed set: any number of networks, an index always meaning the same one."""

    def graph(self, index: int) -> DesignedNetwork:
        """Return the network of an index from 0 on; any first few cover all kinds evenly."""
        ...


class EmulatorFitter(Protocol):
    """Corrects an emulator by measured networks."""

    def fit(
        self,
        base: Emulator,
        target: HardwareSpec,
        observations: Sequence[Observation],
        learned: Sequence[float] = (),
    ) -> Emulator:
        """Return the corrected emulator; `learned` is what `examine` found of the same observations.

        Raises:
            InvalidRequestError: Too few observations to fit anything.
        """
        ...

    def examine(
        self, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> FitExamination:
        """Return how well left-out observations are predicted, and what makes fits quick.

        Raises:
            InvalidRequestError: Too few observations to fit anything.
        """
        ...


class CalibrationStore(Protocol):
    """The corrected emulators of projects; one per target and runtime."""

    def save_calibration(self, calibration: Calibration) -> None:
        """Store it in place of an earlier one of the same project, target and runtime."""
        ...

    def find_calibration(
        self, project: str, target_name: str, runtime_name: str
    ) -> Calibration | None:
        """Return the calibration, or None."""
        ...

    def calibration_time(
        self, project: str, target_name: str, runtime_name: str
    ) -> datetime | None:
        """Return when the calibration was made, or None; does not read what it is made from."""
        ...

    def delete_calibration(self, project: str, target_name: str) -> None:
        """Remove the calibrations of a target; there may be none."""
        ...
