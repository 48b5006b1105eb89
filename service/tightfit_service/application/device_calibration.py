"""Correcting the emulator of a target: the designed set is written, measured on a device, and fitted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import structlog

from tightfit_service.application.calibration_work import (
    CALIBRATION_FILES,
    DESIGN,
    CalibrationFilesTask,
    DesignedFile,
)
from tightfit_service.application.costing import BITS
from tightfit_service.application.device_measurements import DeviceMeasurements
from tightfit_service.application.hardware import HardwareLibrary
from tightfit_service.application.ports import (
    CalibrationStore,
    Clock,
    EmulatorFitter,
    Executor,
    JobStore,
    MeasurementOrder,
    Telemetry,
    WorkResult,
)
from tightfit_service.application.units import run_cached
from tightfit_service.domain.calibration import Calibration, CalibrationProgress, Observation
from tightfit_service.domain.errors import (
    InvalidRequestError,
    MeasurementFailedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat

log = structlog.get_logger(__name__)

DEFAULT_NETWORK_COUNT = 200
"""Per number format: four times every kind of network of the designed set."""
LEAST_NETWORK_COUNT = 32
MOST_NETWORK_COUNT = 512
FILES_PER_UNIT = 10
UNITS_AT_A_TIME = 8
"""Of one calibration; as many of them run as there are workers."""
UNIT_TIMEOUT_SECONDS = 1_800.0
MIN_RUN_COUNT = 50
MIN_SECONDS = 0.5
"""Of measuring per network: enough for a median of short runs; long ones take `MIN_RUN_COUNT` runs."""
RUNNER_WAIT_SECONDS = 60.0
"""For which a runner that is not connected is waited for: it may be starting, or have lost its network."""
MAX_FAILED_SHARE = 0.25
CALIBRATED = (NumberFormat.FLOAT32, NumberFormat.INT8)
MEASURABLE = frozenset({ModelFormat.ONNX, ModelFormat.TFLITE})


@dataclass(frozen=True)
class _Planned:
    file: DesignedFile
    digest: str
    number_format: NumberFormat


class DeviceCalibrator:
    """Runs calibrations. One that breaks off finds its files and measurements again."""

    def __init__(
        self,
        *,
        hardware: HardwareLibrary,
        executor: Executor,
        results: JobStore,
        measurements: DeviceMeasurements,
        fitter: EmulatorFitter,
        calibrations: CalibrationStore,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._hardware = hardware
        self._executor = executor
        self._results = results
        self._measurements = measurements
        self._fitter = fitter
        self._calibrations = calibrations
        self._clock = clock
        self._telemetry = telemetry

    async def calibrate(
        self,
        project: str,
        target_name: str,
        *,
        runner_id: str,
        network_count: int = DEFAULT_NETWORK_COUNT,
    ) -> AsyncIterator[CalibrationProgress]:
        """Measure the designed set on a runner, correct the target's emulator, and tell how far it is.

        All files are written before the first is measured, for the device may be this very machine.

        Raises:
            NotFoundError: No such target.
            InvalidRequestError: A count out of range.
            UnsupportedError: No emulator covers the target, or its files cannot be measured.
            NoRunnerError: The runner is not connected.
            MeasurementFailedError: More than a quarter of the networks could not be measured.
        """
        if not LEAST_NETWORK_COUNT <= network_count <= MOST_NETWORK_COUNT:
            raise InvalidRequestError(
                f"a calibration with {network_count} networks is not offered",
                field="network_count",
                remedy=f"ask for {LEAST_NETWORK_COUNT} to {MOST_NETWORK_COUNT}",
            )
        target = await self._hardware.resolve(project, target_name)
        emulator = self._hardware.plain_cost_model(target).emulator
        formats = [item for item in CALIBRATED if item in target.number_formats]
        if target.output_format not in MEASURABLE or not formats:
            raise UnsupportedError(
                f"files for {target.name} cannot be measured by runners",
                field="target",
                remedy="calibrate a target whose runtime loads TFLite or ONNX files",
            )
        planned: list[_Planned] = []
        skipped: list[str] = []
        async for share in self._written(project, target, formats, network_count, planned, skipped):
            yield CalibrationProgress(fraction=0.4 * share, message="writing networks")
        observations: list[Observation] = []
        order = self._order(project, target, runner_id)
        runtime = ("", "")
        for done, item in enumerate(planned):
            yield CalibrationProgress(
                fraction=0.4 + 0.55 * done / len(planned),
                message=f"measuring {done + 1} of {len(planned)}: {item.file.label}",
            )
            try:
                measurement = await self._measurements.measure(
                    replace(order, artifact_digest=item.digest, macs=_macs(item.file))
                )
            except MeasurementFailedError as error:
                skipped.append(f"{item.file.label} in {item.number_format}: {error.message}")
                if len(skipped) > MAX_FAILED_SHARE * network_count * len(formats):
                    raise
                continue
            runtime = (measurement.runtime_name, measurement.runtime_version)
            profile = item.file.profile
            assert profile is not None
            weight_bits, activation_bits = BITS[item.number_format]
            observations.append(
                Observation(
                    label=item.file.label,
                    number_format=item.number_format,
                    profile=profile.at_precision(
                        weight_bits=weight_bits, activation_bits=activation_bits
                    ),
                    # an emulator cannot know who else computes on the device
                    latency_ms=measurement.measured_latency_ms_p10
                    or measurement.measured_latency_ms_p50,
                )
            )
        yield CalibrationProgress(fraction=0.95, message="fitting")
        found = await asyncio.to_thread(self._fitter.examine, emulator, target, observations)
        calibration = Calibration(
            project=project,
            target_name=target.name,
            runner=runner_id,
            runtime_name=target.runtime.name,
            runtime_version=" ".join(runtime).strip(),
            create_time=self._clock.now(),
            observations=tuple(observations),
            quality=found.quality,
            learned=found.learned,
            skipped=tuple(skipped),
        )
        await asyncio.to_thread(self._calibrations.save_calibration, calibration)
        log.info("target.calibrated", target=target.name, runner=runner_id, project=project)
        yield CalibrationProgress(fraction=1.0, message="calibrated", calibration=calibration)

    async def _written(
        self,
        project: str,
        target: HardwareSpec,
        formats: Sequence[NumberFormat],
        network_count: int,
        planned: list[_Planned],
        skipped: list[str],
    ) -> AsyncIterator[float]:
        """Write all files, several units at a time; yields the share that is done."""
        limit = asyncio.Semaphore(UNITS_AT_A_TIME)
        parts = [
            (number_format, range(first, min(first + FILES_PER_UNIT, network_count)))
            for number_format in formats
            for first in range(0, network_count, FILES_PER_UNIT)
        ]

        async def write(number_format: NumberFormat, indices: range) -> WorkResult:
            async with limit:
                return await self._write(project, target, number_format, indices)

        tasks = [asyncio.create_task(write(*part)) for part in parts]
        try:
            yield 0.0
            for done, finished in enumerate(asyncio.as_completed(tasks), start=1):
                await finished
                yield done / len(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for (number_format, _), task in zip(parts, tasks, strict=True):
            result = task.result()
            for file in CALIBRATION_FILES.outcome(result).files:
                if file.problem:
                    skipped.append(f"{file.label} in {number_format}: {file.problem}")
                else:
                    digest = result.outputs[str(file.index)]
                    planned.append(_Planned(file, digest, number_format))

    async def _write(
        self, project: str, target: HardwareSpec, number_format: NumberFormat, indices: range
    ) -> WorkResult:
        return await run_cached(
            CALIBRATION_FILES.unit(
                CalibrationFilesTask(
                    design=DESIGN,
                    indices=tuple(indices),
                    format=target.output_format,
                    number_format=number_format,
                ),
                project=project,
                inputs={},
                timeout_seconds=UNIT_TIMEOUT_SECONDS,
                label=f"calibration networks from {indices.start} on in {number_format}",
            ),
            executor=self._executor,
            store=self._results,
            telemetry=self._telemetry,
        )

    @staticmethod
    def _order(project: str, target: HardwareSpec, runner_id: str) -> MeasurementOrder:
        return MeasurementOrder(
            project=project,
            job_id=f"calibration-{uuid.uuid4().hex[:8]}",
            artifact_digest="",
            format=target.output_format,
            target=target,
            runner_id=runner_id,
            min_run_count=MIN_RUN_COUNT,
            min_seconds=MIN_SECONDS,
            wait_seconds=RUNNER_WAIT_SECONDS,
        )


def _macs(file: DesignedFile) -> int:
    return file.profile.macs if file.profile is not None else 0
