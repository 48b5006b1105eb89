"""Correcting the emulator of a target: the designed set is written, measured on a device, and fitted."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import structlog

from tightfit_service.application.costs.costing import BITS
from tightfit_service.application.costs.models import CostModels
from tightfit_service.application.hardware.kept_measurements import KeptMeasurements
from tightfit_service.application.hardware.library import HardwareLibrary
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.ports import (
    CalibrationStore,
    Clock,
    Emulator,
    EmulatorFitter,
    MeasurementOrder,
    WorkResult,
)
from tightfit_service.application.units.cached import CachedUnits
from tightfit_service.application.work.calibration import (
    CALIBRATION_FILES,
    DESIGN,
    CalibrationFilesTask,
    DesignedFile,
)
from tightfit_service.domain.calibration import Calibration, CalibrationProgress, Observation
from tightfit_service.domain.errors import (
    InvalidRequestError,
    MeasurementFailedError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.measurement import OperatorTime

log = structlog.get_logger(__name__)

DEFAULT_NETWORK_COUNT = 400
"""Per number format: every kind of network of the designed set at least four times."""
LEAST_NETWORK_COUNT = 32
MOST_NETWORK_COUNT = 1_024
NETWORKS_PER_UNIT = 5
UNITS_AT_A_TIME = 8
"""Of one calibration; as many of them run as there are workers."""
UNIT_TIMEOUT_SECONDS = 1_800.0
MIN_RUN_COUNT = 50
MIN_SECONDS = 0.1
"""Of measuring per network and round: what a short one is disturbed by, another round is not; long networks take
`MIN_RUN_COUNT` runs."""
RUNNER_WAIT_SECONDS = 60.0
"""For which a runner that is not connected is waited for: it may be starting, or have lost its network."""
LEAST_ROUNDS = 2
"""Over the networks: whoever shares a device's cores is slow for seconds or minutes, now and then."""
AGREEMENT = 0.05
"""Networks whose two lowest latencies lie within this of each other are not measured again."""
MAX_FAILED_SHARE = 0.25
WRITTEN_AT, MEASURED_AT = 0.4, 0.95
"""Fractions of a calibration's progress at which files are written, and networks measured."""
ROUND_ENDS = (0.45, 0.9, 0.95, 1.0)
"""Shares of the measuring after each round; the last ones are short."""
MOST_ROUNDS = len(ROUND_ENDS)
CALIBRATED = (NumberFormat.FLOAT32, NumberFormat.INT8)
MEASURABLE = frozenset({ModelFormat.ONNX, ModelFormat.TFLITE})


@dataclass(frozen=True)
class _Planned:
    file: DesignedFile
    digest: str

    @property
    def name(self) -> str:
        """What tells it from the others of a calibration."""
        return self.file.name


@dataclass(kw_only=True)
class _Course:
    """A calibration under way: what was asked for, and what there is so far."""

    project: str
    target: HardwareSpec
    runner_id: str
    formats: Sequence[NumberFormat]
    network_count: int
    earlier: KeptMeasurements | None = None
    """What is not measured again."""
    names: list[str] = field(default_factory=list)
    """Of all that is measured or kept of the designed set, in its order."""
    planned: list[_Planned] = field(default_factory=list)
    kept: dict[str, Observation] = field(default_factory=dict)
    """What is known of networks of the designed set, by name."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    """Of each network that was measured, in ms, round by round."""
    operators: dict[str, tuple[OperatorTime, ...]] = field(default_factory=dict)
    """Of each network whose runtime tells what they take."""
    skipped: list[str] = field(default_factory=list)
    """Networks without a measurement, each with the reason."""
    runtime: str = ""
    """Name and version of what ran the networks, as the runner says."""

    def add(self, file: DesignedFile, digest: str) -> None:
        """Note that a network has a file, which is to be measured unless it was measured earlier.

        Of two files that are the same, each has its own measurement.
        """
        self.names.append(file.name)
        item = _Planned(file, digest)
        known = None if self.earlier is None else self.earlier.take(digest)
        if known is None:
            self.planned.append(item)
        else:
            self.kept[file.name] = _observation(item, known.latency_ms, known.operators)

    def skip(self, file: DesignedFile, reason: str) -> None:
        """Note that a network has no measurement."""
        self.skipped.append(f"{file.label} in {file.number_format}: {reason}")

    def of_round(self, number: int) -> list[_Planned]:
        """Return what is measured in a round (from 1 on): all at first, then where rounds disagree."""
        if number == 1:
            return self.planned
        measured = [item for item in self.planned if item.name in self.latencies]
        if number <= LEAST_ROUNDS:
            return measured
        return [item for item in measured if not rounds_agree(self.latencies[item.name])]

    @property
    def observations(self) -> list[Observation]:
        """What the measurements tell the fit: of each network the least disturbed one."""
        measured = {
            item.name: _observation(
                item, min(self.latencies[item.name]), self.operators.get(item.name, ())
            )
            for item in self.planned
            if item.name in self.latencies
        }
        known = self.kept | measured
        return [known[name] for name in self.names if name in known]

    @property
    def has_failed(self) -> bool:
        """Whether more networks are without a measurement than a calibration may lack."""
        return len(self.skipped) > MAX_FAILED_SHARE * self.network_count * len(self.formats)


class DeviceCalibrator:
    """Runs calibrations.

    Networks are measured in rounds over all of them, and the least disturbed round of each counts.
    One that broke off finds its files and measurements again; one that is repeated finds its files.
    """

    def __init__(
        self,
        *,
        hardware: HardwareLibrary,
        costs: CostModels,
        units: CachedUnits,
        measurements: DeviceMeasurements,
        fitter: EmulatorFitter,
        calibrations: CalibrationStore,
        clock: Clock,
    ) -> None:
        self._hardware = hardware
        self._costs = costs
        self._units = units
        self._measurements = measurements
        self._fitter = fitter
        self._calibrations = calibrations
        self._clock = clock

    async def calibrate(
        self,
        project: str,
        target_name: str,
        *,
        runner_id: str,
        network_count: int = DEFAULT_NETWORK_COUNT,
        keep_measurements: bool = False,
    ) -> AsyncIterator[CalibrationProgress]:
        """Measure the designed set on a runner, correct the target's emulator, and tell how far it is.

        All files are written before the first is measured, for the device may be this very machine.

        Args:
            project: Whose estimates are corrected.
            target_name: Of the catalogue or the project.
            runner_id: Of the runner that measures.
            network_count: Per number format.
            keep_measurements: Measure only files that the last calibration of the target did not; all
                where there is none.

        Raises:
            NotFoundError: No such target.
            InvalidRequestError: A count out of range, or measurements of another runner are to be kept.
            PreconditionError: Measurements are to be kept that another version of the runtime made.
            UnsupportedError: No emulator covers the target, or its files cannot be measured.
            NoRunnerError: The runner is not connected.
            MeasurementFailedError: More than a quarter of the networks could not be written or measured.
        """
        _check_count(network_count)
        target = await self._hardware.resolve(project, target_name)
        emulator = self._costs.plain(target).emulator
        course = _Course(
            project=project,
            target=target,
            runner_id=runner_id,
            formats=_measurable_formats(target),
            network_count=network_count,
            earlier=await self._earlier(project, target, runner_id) if keep_measurements else None,
        )
        async with aclosing(self._write_all(course)) as shares:
            async for share in shares:
                yield CalibrationProgress(fraction=WRITTEN_AT * share, message="writing networks")
        _check_written(course)
        if course.kept:
            yield CalibrationProgress(
                fraction=WRITTEN_AT, message=f"keeping {len(course.kept)} measurements"
            )
        async with aclosing(self._measure_all(course)) as steps:
            async for step in steps:
                yield step
        yield CalibrationProgress(fraction=MEASURED_AT, message="fitting")
        calibration = await self._fit(emulator, course)
        yield CalibrationProgress(fraction=1.0, message="calibrated", calibration=calibration)

    async def _earlier(
        self, project: str, target: HardwareSpec, runner_id: str
    ) -> KeptMeasurements | None:
        """Return what the last calibration measured; None where there is none.

        Raises:
            InvalidRequestError: Another runner measured it.
            UnreadableRecordError: It is damaged, or was written by another version of tightfit.
        """
        last = await asyncio.to_thread(
            self._calibrations.find_calibration, project, target.name, target.runtime.name
        )
        if last is None:
            return None
        earlier = KeptMeasurements(last)
        earlier.check_runner(runner_id)
        return earlier

    async def _write_all(self, course: _Course) -> AsyncGenerator[float, None]:
        """Write all files, several units at a time; yields the share that is done."""
        limit = asyncio.Semaphore(UNITS_AT_A_TIME)
        parts = [
            range(first, min(first + NETWORKS_PER_UNIT, course.network_count))
            for first in range(0, course.network_count, NETWORKS_PER_UNIT)
        ]

        async def write(indices: range) -> WorkResult:
            async with limit:
                return await self._write(course, indices)

        tasks = [asyncio.create_task(write(part)) for part in parts]
        try:
            yield 0.0
            for done, finished in enumerate(asyncio.as_completed(tasks), start=1):
                await finished
                yield done / len(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            result = task.result()
            for file in CALIBRATION_FILES.outcome(result).files:
                if file.problem:
                    course.skip(file, file.problem)
                else:
                    course.add(file, result.outputs[file.name])

    async def _write(self, course: _Course, indices: range) -> WorkResult:
        return await self._units.run(
            CALIBRATION_FILES.unit(
                CalibrationFilesTask(
                    design=DESIGN,
                    indices=tuple(indices),
                    number_formats=tuple(course.formats),
                    target=course.target,
                ),
                project=course.project,
                inputs={},
                timeout_seconds=UNIT_TIMEOUT_SECONDS,
                label=f"calibration networks from {indices.start} on",
            )
        )

    async def _measure_all(self, course: _Course) -> AsyncGenerator[CalibrationProgress, None]:
        """Measure what was written, in rounds, one network after the other; yields before each.

        Raises:
            NoRunnerError: The runner is not connected.
            MeasurementFailedError: Too many networks could not be measured.
            PreconditionError: Another version of the runtime measured what is kept.
        """
        order = await self._order(course)
        begin = WRITTEN_AT
        for number, share in enumerate(ROUND_ENDS, start=1):
            end = WRITTEN_AT + (MEASURED_AT - WRITTEN_AT) * share
            items = course.of_round(number)
            again = "" if number == 1 else " again"
            for done, item in enumerate(items):
                yield CalibrationProgress(
                    fraction=begin + (end - begin) * done / len(items),
                    message=f"measuring{again} {done + 1} of {len(items)}: {item.file.label}",
                )
                await self._measure(course, item, _in_round(order, number))
            begin = end

    async def _measure(self, course: _Course, item: _Planned, order: MeasurementOrder) -> None:
        """Measure one network once more, or note why it has no measurement."""
        try:
            measurement = await self._measurements.measure(
                replace(order, artifact_digest=item.digest, macs=_macs(item.file))
            )
        except MeasurementFailedError as error:
            if item.name in course.latencies:
                # an earlier round has measured it, which is enough
                return
            course.skip(item.file, error.message)
            if course.has_failed:
                raise
            return
        course.runtime = f"{measurement.runtime_name} {measurement.runtime_version}".strip()
        if course.earlier is not None and course.kept:
            course.earlier.check_runtime(course.runtime)
        # an emulator cannot know who else computes on the device
        undisturbed = measurement.measured_latency_ms_p10 or measurement.measured_latency_ms_p50
        course.latencies.setdefault(item.name, []).append(undisturbed)
        if measurement.operators:
            course.operators[item.name] = measurement.operators

    async def _order(self, course: _Course) -> MeasurementOrder:
        """Return what is asked of the runner; each network has its own file besides.

        Measurements are found again until a calibration is made of them: who calibrates once more wants
        to know what the device does now.
        """
        target = course.target
        last = await asyncio.to_thread(
            self._calibrations.calibration_time, course.project, target.name, target.runtime.name
        )
        return MeasurementOrder(
            project=course.project,
            job_id=f"calibration-{uuid.uuid4().hex[:8]}",
            artifact_digest="",
            format=target.output_format,
            target=target,
            runner_id=course.runner_id,
            min_run_count=MIN_RUN_COUNT,
            min_seconds=MIN_SECONDS,
            wait_seconds=RUNNER_WAIT_SECONDS,
            occasion="" if last is None else f"after {last.isoformat()}",
            wants_operators=True,
        )

    async def _fit(self, emulator: Emulator, course: _Course) -> Calibration:
        """Correct the emulator by what was measured, now or earlier, and store the calibration."""
        kept_runtime = "" if course.earlier is None else course.earlier.runtime
        found = await asyncio.to_thread(
            self._fitter.examine, emulator, course.target, course.observations
        )
        calibration = Calibration(
            project=course.project,
            target_name=course.target.name,
            runner=course.runner_id,
            runtime_name=course.target.runtime.name,
            runtime_version=course.runtime or kept_runtime,
            create_time=self._clock.now(),
            observations=tuple(course.observations),
            quality=found.quality,
            learned=found.learned,
            skipped=tuple(course.skipped),
        )
        await asyncio.to_thread(self._calibrations.save_calibration, calibration)
        log.info(
            "target.calibrated",
            target=course.target.name,
            runner=course.runner_id,
            project=course.project,
        )
        return calibration


def _check_count(network_count: int) -> None:
    if not LEAST_NETWORK_COUNT <= network_count <= MOST_NETWORK_COUNT:
        raise InvalidRequestError(
            f"a calibration with {network_count} networks is not offered",
            field="network_count",
            remedy=f"ask for {LEAST_NETWORK_COUNT} to {MOST_NETWORK_COUNT}",
        )


def _check_written(course: _Course) -> None:
    """Refuse to measure where so many networks have no file that a fit would be of no use."""
    if course.has_failed:
        asked = course.network_count * len(course.formats)
        raise MeasurementFailedError(
            f"{len(course.skipped)} of {asked} networks could not be written for "
            f"{course.target.name}, the first being {course.skipped[0]}",
            field="target",
            remedy="calibrate a target whose runtime takes files of such networks",
        )


def _measurable_formats(target: HardwareSpec) -> Sequence[NumberFormat]:
    """Return the number formats of the target that are calibrated.

    Raises:
        UnsupportedError: None, or files for the target cannot be measured.
    """
    formats = [item for item in CALIBRATED if item in target.number_formats]
    if target.output_format not in MEASURABLE or not formats:
        raise UnsupportedError(
            f"files for {target.name} cannot be measured by runners",
            field="target",
            remedy="calibrate a target whose runtime loads TFLite or ONNX files",
        )
    return formats


def _in_round(order: MeasurementOrder, number: int) -> MeasurementOrder:
    """Return an order whose measurements are not those of an earlier round."""
    if number == 1:
        return order
    return replace(
        order, occasion=f"{order.occasion} round {number}".strip(), wants_operators=False
    )


def rounds_agree(latencies_ms: Sequence[float]) -> bool:
    """Whether the two lowest latencies do, so that the device was undisturbed in both rounds."""
    if len(latencies_ms) < LEAST_ROUNDS:
        return False
    least, following = sorted(latencies_ms)[:2]
    return following <= least * (1 + AGREEMENT)


def _observation(
    item: _Planned, latency_ms: float, operators: tuple[OperatorTime, ...]
) -> Observation:
    """Return what a network tells the fit: its work, its undisturbed latency, and its operators'."""
    profile = item.file.profile
    assert profile is not None
    number_format = item.file.number_format
    weight_bits, activation_bits = BITS[number_format]
    return Observation(
        label=item.file.label,
        number_format=number_format,
        profile=profile.at_precision(weight_bits=weight_bits, activation_bits=activation_bits),
        latency_ms=latency_ms,
        operators=operators,
        file_digest=item.digest,
    )


def _macs(file: DesignedFile) -> int:
    return file.profile.macs if file.profile is not None else 0
