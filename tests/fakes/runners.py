"""Runners for tests: a desk whose clock stands still, and descriptions of devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fakes.clock import FakeClock
from tightfit_service.application.ports import MeasurementOrder, NoteCallback, no_notes
from tightfit_service.application.runners.desk import RunnerDesk
from tightfit_service.application.runners.sessions import PROTOCOL_VERSION, RunnerHello
from tightfit_service.domain.errors import NotFoundError, TightfitError
from tightfit_service.domain.hardware import HardwareSpec, Memory, ModelFormat, Runtime
from tightfit_service.domain.measurement import DeviceDescription, DeviceRuntime, Measurement

PI = HardwareSpec(
    name="pi-5",
    display_name="A single-board computer",
    core="cortex-a76",
    core_count=4,
    clock_mhz=2_400.0,
    isa_features=("neon", "dotprod"),
    memory=Memory(ram_bytes=8 << 30, flash_bytes=32 << 30),
    runtime=Runtime(name="TensorFlow Lite XNNPACK"),
)


@dataclass
class RecordingRunnerTelemetry:
    """Implements `RunnerTelemetry`."""

    states: Mapping[tuple[str, str], int] = field(default_factory=dict)
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    residuals: list[tuple[str, str, float]] = field(default_factory=list)

    def runner_states(self, counts: Mapping[tuple[str, str], int]) -> None:
        self.states = {key: count for key, count in counts.items() if count}

    def measurement_finished(self, target: str, outcome: str) -> None:
        self.outcomes.append((target, outcome))

    def measurement_waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def measurement_residual(self, target: str, quantity: str, ratio: float) -> None:
        self.residuals.append((target, quantity, ratio))


def find_target(name: str) -> HardwareSpec:
    """Return the only target of the catalogue."""
    if name != PI.name:
        raise NotFoundError(f"no target {name!r}", field="target")
    return PI


def make_desk(clock: FakeClock, telemetry: RecordingRunnerTelemetry | None = None) -> RunnerDesk:
    """Return a desk that knows one target."""
    return RunnerDesk(
        clock=clock,
        telemetry=telemetry or RecordingRunnerTelemetry(),
        resolve_target=find_target,
        server_version="0.1.0",
    )


def make_device(**changes: Any) -> DeviceDescription:
    """Return a device that is the target; any field can be changed."""
    device = DeviceDescription(
        core=PI.core,
        core_count=4,
        clock_mhz=2_400.0,
        ram_bytes=8 << 30,
        isa_features=("neon", "dotprod", "fp16"),
        runtimes=(DeviceRuntime(name="litert", version="2.3.0", formats=(ModelFormat.TFLITE,)),),
    )
    return replace(device, **changes)


def make_hello(instance_id: str = "an-instance", **changes: Any) -> RunnerHello:
    """Return the hello of such a device; any field can be changed."""
    hello = RunnerHello(
        protocol_version=PROTOCOL_VERSION,
        agent_version="0.1.0",
        instance_id=instance_id,
        device=make_device(),
    )
    return replace(hello, **changes)


def make_order(**changes: Any) -> MeasurementOrder:
    """Return an order for a file that does not exist; any field can be changed."""
    order = MeasurementOrder(
        project="default",
        job_id="job",
        artifact_digest="0" * 64,
        format=ModelFormat.TFLITE,
        target=PI,
        macs=12_000_000,
        timeout_seconds=60.0,
    )
    return replace(order, **changes)


def make_measurement(**changes: Any) -> Measurement:
    """Return a measurement that can be true; any field can be changed."""
    measurement = Measurement(
        measured_latency_ms_p50=2.0,
        measured_latency_ms_p90=2.2,
        measured_latency_ms_p99=2.5,
        measured_throughput_per_s=480.0,
        run_count=200,
        settled=True,
        noise_ratio=0.01,
    )
    return replace(measurement, **changes)


class Measurer:
    """Implements `DeviceMeasurer`: gives the answers in turn, the last of them for ever."""

    def __init__(self, *answers: Measurement | TightfitError) -> None:
        self._answers = list(answers)
        self.orders: list[MeasurementOrder] = []

    async def measure(
        self, order: MeasurementOrder, *, on_note: NoteCallback = no_notes
    ) -> Measurement:
        self.orders.append(order)
        on_note("measured on bench")
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, TightfitError):
            raise answer
        return answer
