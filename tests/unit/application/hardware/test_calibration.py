"""A calibration writes its set, measures it on the runner that was named, fits, and is used from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from fakes.clock import FakeClock
from fakes.libraries import make_libraries
from fakes.linear_emulator import LinearEmulator
from fakes.records import make_target
from fakes.runners import RecordingRunnerTelemetry
from fakes.stores import InMemoryStore
from tightfit_service.application.costs.models import FittedEmulators
from tightfit_service.application.hardware.calibration import LEAST_ROUNDS, DeviceCalibrator
from tightfit_service.application.hardware.measurements import DeviceMeasurements
from tightfit_service.application.plain import to_plain
from tightfit_service.application.ports import (
    BeginCallback,
    Emulator,
    MeasurementOrder,
    NoteCallback,
    ProgressCallback,
    WorkResult,
    WorkUnit,
    begin_at_once,
    no_notes,
)
from tightfit_service.application.work.calibration import (
    CALIBRATION_FILES,
    DESIGN,
    DesignedFile,
)
from tightfit_service.domain.calibration import (
    Calibration,
    CalibrationProgress,
    FitExamination,
    FitQuality,
    Observation,
)
from tightfit_service.domain.errors import (
    InvalidRequestError,
    MeasurementFailedError,
    NotFoundError,
    PreconditionError,
    WorkFailedError,
)
from tightfit_service.domain.hardware import HardwareSpec, ModelFormat, NumberFormat
from tightfit_service.domain.measurement import Measurement, OperatorTime
from tightfit_service.domain.network import NetworkProfile

PROFILE = NetworkProfile(operators=(), tensors={}, inputs=(), outputs=())
BOARD = replace(
    make_target(),
    name="board",
    number_formats=(NumberFormat.INT8, NumberFormat.FLOAT32),
    output_format=ModelFormat.TFLITE,
)


class Catalogue:
    def get(self, name: str) -> HardwareSpec:
        if name != "board":
            raise NotFoundError(f"no target {name}")
        return BOARD

    def list(self) -> Sequence[HardwareSpec]:
        return [BOARD]

    def complete(self, partial: Mapping[str, Any]) -> HardwareSpec:
        raise AssertionError(partial)


def profile_of(index: int) -> NetworkProfile:
    """Return the work of a network of the set: each has another, and is a file of its own."""
    return replace(PROFILE, constant_count=index)


class Writer:
    """An executor that writes every network but each tenth, or as `gap` says.

    Networks are called `label`; `profiles` has the work of those that differ from `profile_of`.
    """

    def __init__(self) -> None:
        self.units: list[WorkUnit] = []
        self.failing = False
        self.gap = 10
        self.label = "net"
        self.profiles: dict[int, NetworkProfile] = {}

    async def start(self) -> None: ...

    async def check(self) -> None: ...

    async def stop(self) -> None: ...

    async def run(
        self,
        unit: WorkUnit,
        *,
        on_progress: ProgressCallback,
        on_begin: BeginCallback = begin_at_once,
    ) -> WorkResult:
        await on_begin()
        assert unit.kind == CALIBRATION_FILES.name
        self.units.append(unit)
        if self.failing:
            raise WorkFailedError("the disk is full")
        files, outputs = [], {}
        for index in unit.payload["indices"]:
            profile = self.profiles.get(index, profile_of(index))
            problem = "no kernel" if index % self.gap == self.gap - 1 else ""
            for name in unit.payload["number_formats"]:
                file = DesignedFile(
                    index=index,
                    number_format=NumberFormat(name),
                    label=self.label,
                    profile=None if problem else profile,
                    problem=problem,
                )
                files.append(file)
                if not problem:
                    outputs[file.name] = f"{name}-{profile.constant_count}"
        return WorkResult(payload={"files": [to_plain(file) for file in files]}, outputs=outputs)


OPERATORS = (OperatorTime(kind="Conv", latency_ms=1.2), OperatorTime(kind="Add", latency_ms=0.2))


class Device:
    """A device measurer; the first `failures` orders cannot be measured.

    A file takes what `undisturbed_ms` says, measurement by measurement (None: it fails); other files
    take 1.5 ms, but that every third is of a runner that tells only the median.
    """

    def __init__(self) -> None:
        self.orders: list[MeasurementOrder] = []
        self.failures = 0
        self.version = "2.3"
        self.undisturbed_ms: dict[str, list[float | None]] = {}

    def _undisturbed_ms(self, artifact: str) -> float | None:
        if artifact not in self.undisturbed_ms:
            return 1.5 if len(self.orders) % 3 else None
        latency_ms = self.undisturbed_ms[artifact].pop(0)
        if latency_ms is None:
            raise MeasurementFailedError("the runtime crashed")
        return latency_ms

    async def measure(
        self, order: MeasurementOrder, *, on_note: NoteCallback = no_notes
    ) -> Measurement:
        self.orders.append(order)
        if len(self.orders) <= self.failures:
            raise MeasurementFailedError("the runtime crashed")
        return Measurement(
            measured_latency_ms_p10=self._undisturbed_ms(order.artifact_digest),
            measured_latency_ms_p50=2.0,
            measured_latency_ms_p90=2.1,
            measured_throughput_per_s=500.0,
            run_count=100,
            settled=True,
            noise_ratio=0.01,
            runtime_name="litert",
            runtime_version=self.version,
            runner=order.runner_id,
            operators=OPERATORS if order.wants_operators else (),
        )


class Fitted(LinearEmulator):
    def __init__(self, count: int) -> None:
        self.name = f"fitted to {count}"


class Fitter:
    def fit(
        self,
        base: Emulator,
        target: HardwareSpec,
        observations: Sequence[Observation],
        learned: Sequence[float] = (),
    ) -> Emulator:
        assert tuple(learned) == (2.0, 7.0)
        return Fitted(len(observations))

    def examine(
        self, base: Emulator, target: HardwareSpec, observations: Sequence[Observation]
    ) -> FitExamination:
        quality = FitQuality(
            number_format=NumberFormat.INT8,
            count=len(observations),
            median_error=0.01,
            p90_error=0.05,
            within_10_percent=0.95,
            median_error_before=0.5,
            coverage=0.9,
        )
        return FitExamination(quality=(quality,), learned=(2.0, 7.0))


class Calibrations:
    def __init__(self) -> None:
        self.saved: dict[tuple[str, str, str], Calibration] = {}
        self.read = 0

    def save_calibration(self, calibration: Calibration) -> None:
        key = (calibration.project, calibration.target_name, calibration.runtime_name)
        self.saved[key] = calibration

    def find_calibration(
        self, project: str, target_name: str, runtime_name: str
    ) -> Calibration | None:
        self.read += 1
        return self.saved.get((project, target_name, runtime_name))

    def calibration_time(
        self, project: str, target_name: str, runtime_name: str
    ) -> datetime | None:
        found = self.saved.get((project, target_name, runtime_name))
        return None if found is None else found.create_time

    def delete_calibration(self, project: str, target_name: str) -> None:
        self.saved = {k: v for k, v in self.saved.items() if k[:2] != (project, target_name)}


class Bench:
    def __init__(self) -> None:
        self.writer, self.device, self.calibrations = Writer(), Device(), Calibrations()
        store = InMemoryStore()
        libraries = make_libraries(
            store=store,
            executor=self.writer,
            catalogue=Catalogue(),
            fitted=FittedEmulators(calibrations=self.calibrations, fitter=Fitter()),
        )
        self.costs = libraries.costs
        self.calibrator = DeviceCalibrator(
            hardware=libraries.hardware,
            costs=libraries.costs,
            units=libraries.units,
            measurements=DeviceMeasurements(
                measurer=self.device, results=store, telemetry=RecordingRunnerTelemetry()
            ),
            fitter=Fitter(),
            calibrations=self.calibrations,
            clock=FakeClock(),
        )

    async def run(
        self,
        *,
        count: int = 40,
        target: str = "board",
        runner: str = "bench-1",
        keep: bool = False,
    ) -> list[CalibrationProgress]:
        course = self.calibrator.calibrate(
            "p", target, runner_id=runner, network_count=count, keep_measurements=keep
        )
        return [step async for step in course]

    async def calibrated(self, *, count: int = 40, keep: bool = False) -> Calibration:
        """Run a calibration and return what it ends with."""
        found = (await self.run(count=count, keep=keep))[-1].calibration
        assert found is not None
        return found

    def measured(self) -> set[str]:
        """Return the files that were measured since the last call."""
        found = {order.artifact_digest for order in self.device.orders}
        self.device.orders.clear()
        return found


def networks_of(calibration: Calibration) -> list[tuple[int, str]]:
    """Return index and number format of what a calibration is made from, in order."""
    return [(o.profile.constant_count, str(o.number_format)) for o in calibration.observations]


def designed(*indices: int) -> list[tuple[int, str]]:
    """Return what can be measured of networks of the set, as `networks_of` does."""
    return [(i, name) for i in indices if i % 10 != 9 for name in ("float32", "int8")]


async def test_a_calibration_measures_on_the_runner_and_is_used_by_its_project_only() -> None:
    bench = Bench()
    steps = await bench.run()
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
    found = steps[-1].calibration
    assert found is not None
    assert found.runtime_version == "litert 2.3"
    assert len(found.observations) == 72
    assert len(found.skipped) == 8
    assert "no kernel" in found.skipped[0]
    assert {order.runner_id for order in bench.device.orders} == {"bench-1"}
    formats = {(o.number_format, o.latency_ms) for o in found.observations}
    # undisturbed where the runner says so, else the median
    assert {o.operators for o in found.observations} == {OPERATORS}
    taken = {1.5, 2.0}
    assert formats == {(f, ms) for f in (NumberFormat.INT8, NumberFormat.FLOAT32) for ms in taken}
    corrected = await bench.costs.of_project("p", BOARD)
    assert corrected.emulator.name == "fitted to 72"
    read = bench.calibrations.read
    assert (await bench.costs.of_project("p", BOARD)).emulator is corrected.emulator
    assert bench.calibrations.read == read, "what it is made from is read once"
    assert (await bench.costs.of_project("other", BOARD)).emulator.name == "linear"


async def test_files_are_all_written_before_the_first_is_measured() -> None:
    bench = Bench()
    async for step in bench.calibrator.calibrate(
        "p", "board", runner_id="bench-1", network_count=32
    ):
        if step.message.startswith("writing"):
            assert not bench.device.orders
    assert sum(len(unit.payload["indices"]) for unit in bench.writer.units) == 32
    # a converter does most of its work once for both
    assert {tuple(unit.payload["number_formats"]) for unit in bench.writer.units} == {
        ("float32", "int8")
    }
    # files of an older set have other digests
    assert {unit.payload["design"] for unit in bench.writer.units} == {DESIGN}


async def test_files_that_cannot_be_written_end_a_calibration_and_its_other_units() -> None:
    bench = Bench()
    bench.writer.failing = True
    with pytest.raises(WorkFailedError, match="disk"):
        await bench.run()
    begun = len(bench.writer.units)
    await asyncio.sleep(0)
    assert len(bench.writer.units) == begun
    assert not bench.device.orders


async def test_a_set_of_which_too_little_can_be_written_is_not_measured() -> None:
    bench = Bench()
    bench.writer.gap = 3
    with pytest.raises(MeasurementFailedError, match=r"26 of 80 .* net in float32: no kernel"):
        await bench.run()
    assert not bench.device.orders


async def test_a_calibration_that_broke_off_finds_its_files_and_measurements_again() -> None:
    bench = Bench()
    course: Any = bench.calibrator.calibrate("p", "board", runner_id="bench-1", network_count=40)
    async with aclosing(course) as steps:
        async for step in steps:
            if step.message.startswith("measuring 11 of"):
                break
    units, orders = len(bench.writer.units), len(bench.device.orders)
    assert orders == 10
    await bench.run()
    assert len(bench.writer.units) == units
    measured = [(order.artifact_digest, order.occasion) for order in bench.device.orders]
    assert len(measured) == len(set(measured)) == LEAST_ROUNDS * 72


async def test_a_repeated_calibration_measures_its_files_anew() -> None:
    bench = Bench()
    await bench.run()
    units, orders = len(bench.writer.units), len(bench.device.orders)
    await bench.run()
    assert (len(bench.writer.units), len(bench.device.orders)) == (units, 2 * orders)


async def test_networks_are_measured_until_two_rounds_agree_and_the_lowest_counts() -> None:
    bench = Bench()
    bench.device.undisturbed_ms = {
        "int8-0": [1.0, 1.04],
        "int8-1": [1.3, 1.0, 1.02],
        "int8-2": [4.0, 3.0, 2.0, 1.0],
        "float32-0": [1.0, None, 1.01],
    }
    steps = await bench.run()
    assert bench.device.undisturbed_ms == {
        "int8-0": [],
        "int8-1": [],
        "int8-2": [],
        "float32-0": [],
    }
    found = steps[-1].calibration
    assert found is not None
    assert not any("crashed" in reason for reason in found.skipped), "one round has measured it"
    latencies = [o.latency_ms for o in found.observations if o.number_format is NumberFormat.INT8]
    assert latencies[:3] == [1.0, 1.0, 1.0]
    rounds = [step.message.split(":")[0] for step in steps if step.message.startswith("measuring")]
    assert rounds[-4:] == [
        "measuring again 1 of 3",
        "measuring again 2 of 3",
        "measuring again 3 of 3",
        "measuring again 1 of 1",
    ]


async def test_single_networks_that_cannot_be_measured_are_named_and_many_end_it() -> None:
    bench = Bench()
    bench.device.failures = 3
    found = (await bench.run())[-1].calibration
    assert found is not None
    assert sum("crashed" in reason for reason in found.skipped) == 3
    bench = Bench()
    bench.device.failures = 100
    with pytest.raises(MeasurementFailedError):
        await bench.run()
    assert not bench.calibrations.saved


async def test_what_cannot_be_calibrated_is_refused_before_anything_runs() -> None:
    bench = Bench()
    with pytest.raises(NotFoundError):
        await bench.run(target="unknown")
    for count in (0, 31, 1025):
        with pytest.raises(InvalidRequestError) as caught:
            await bench.run(count=count)
        assert caught.value.field == "network_count"
    assert not bench.writer.units


async def test_more_networks_are_measured_without_those_that_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.device.undisturbed_ms = {"int8-3": [7.0, 7.0]}
    first = await bench.calibrated(count=32)
    bench.measured()
    bench.writer.units.clear()
    newer_version(monkeypatch)
    bench.writer.label = "net of another version"
    steps = await bench.run(keep=True)
    assert bench.measured() == {f"{name}-{index}" for index, name in designed(*range(32, 40))}
    found = steps[-1].calibration
    assert found is not None
    assert networks_of(found) == designed(*range(40))
    assert {o.label for o in found.observations} == {"net of another version"}
    kept = found.observations[: len(first.observations)]
    assert [o.latency_ms for o in kept] == [o.latency_ms for o in first.observations]
    assert 7.0 in {o.latency_ms for o in kept}
    assert {o.operators for o in kept} == {OPERATORS}
    assert len(found.skipped) == 8, "kept ones are not skipped, failed ones are tried again"
    messages = [step.message for step in steps]
    assert "keeping 58 measurements" in messages
    assert "measuring 1 of 14: net of another version" in messages
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)


def newer_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files be written anew, as another version of the designed set has them."""
    monkeypatch.setattr("tightfit_service.application.hardware.calibration.DESIGN", DESIGN + 1)


async def test_a_new_network_in_the_midst_is_measured_and_the_one_it_replaces_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    await bench.run()
    bench.measured()
    newer_version(monkeypatch)
    bench.writer.profiles = {4: profile_of(1_004)}
    found = await bench.calibrated(keep=True)
    assert bench.measured() == {"float32-1004", "int8-1004"}
    assert networks_of(found) == designed(*range(4), 1_004, *range(5, 40))
    found = await bench.calibrated(count=32, keep=True)
    assert not bench.measured()
    assert networks_of(found) == designed(*range(4), 1_004, *range(5, 32))


async def test_where_all_is_kept_the_emulator_is_fitted_anew_and_nothing_is_measured() -> None:
    bench = Bench()
    first = await bench.calibrated()
    bench.measured()
    found = await bench.calibrated(keep=True)
    assert not bench.measured()
    assert found.observations == first.observations
    assert found.skipped == first.skipped
    assert found.runtime_version == "litert 2.3"
    assert found.quality[0].count == 72


async def test_networks_with_the_same_file_keep_a_measurement_each() -> None:
    bench = Bench()
    bench.writer.profiles = {6: profile_of(5), 36: profile_of(33)}
    first = await bench.calibrated()
    bench.measured()
    found = await bench.calibrated(keep=True)
    assert not bench.measured()
    assert found.observations == first.observations


async def test_what_was_measured_before_its_file_was_noted_is_measured_again() -> None:
    bench = Bench()
    first = await bench.calibrated()
    bench.measured()
    (key,) = bench.calibrations.saved
    unnoted = tuple(replace(item, file_digest="") for item in first.observations)
    bench.calibrations.saved[key] = replace(first, observations=unnoted)
    found = await bench.calibrated(keep=True)
    assert len(bench.measured()) == 72
    assert found.observations == first.observations


async def test_without_an_earlier_calibration_all_is_measured() -> None:
    bench = Bench()
    found = await bench.calibrated(keep=True)
    assert len(bench.measured()) == len(found.observations) == 72


async def test_measurements_of_another_runner_are_not_kept() -> None:
    bench = Bench()
    await bench.run()
    bench.writer.units.clear()
    with pytest.raises(InvalidRequestError, match="bench-1") as caught:
        await bench.run(runner="bench-2", keep=True)
    assert caught.value.field == "keep_measurements"
    assert "bench-1" in caught.value.remedy
    assert not bench.writer.units
    found = (await bench.run(runner="bench-2"))[-1].calibration
    assert found is not None
    assert found.runner == "bench-2"


async def test_measurements_of_another_version_of_the_runtime_are_not_kept() -> None:
    bench = Bench()
    await bench.run(count=32)
    bench.measured()
    bench.device.version = "2.4"
    with pytest.raises(PreconditionError, match=r"litert 2\.3.*litert 2\.4") as caught:
        await bench.run(keep=True)
    assert caught.value.field == "keep_measurements"
    assert "without" in caught.value.remedy
    assert len(bench.device.orders) == 1
    (stored,) = bench.calibrations.saved.values()
    assert stored.runtime_version == "litert 2.3"


async def test_a_calibration_that_keeps_measurements_and_broke_off_goes_on() -> None:
    bench = Bench()
    await bench.run(count=32)
    course: Any = bench.calibrator.calibrate(
        "p", "board", runner_id="bench-1", network_count=40, keep_measurements=True
    )
    async with aclosing(course) as steps:
        async for step in steps:
            if step.message.startswith("measuring 3 of"):
                break
    units, begun = len(bench.writer.units), len(bench.device.orders)
    await bench.calibrated(keep=True)
    assert len(bench.writer.units) == units
    orders = [(order.artifact_digest, order.occasion) for order in bench.device.orders]
    assert len(orders) == len(set(orders)) > begun
