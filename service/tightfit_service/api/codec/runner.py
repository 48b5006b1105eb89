"""Runners: what agents say inwards, and what they are told outwards."""

from __future__ import annotations

from tightfit.v1 import runner_pb2
from tightfit_service.api import resource_names
from tightfit_service.api.codec import enums
from tightfit_service.api.codec.times import duration_to_proto, timestamp_to_proto
from tightfit_service.application.runners.sessions import (
    Command,
    Offer,
    Runner,
    RunnerHello,
    Welcome,
)
from tightfit_service.domain.measurement import (
    DeviceDescription,
    DeviceRuntime,
    DeviceState,
    EnergyReading,
    FailureKind,
    Measurement,
    OperatorTime,
)

MOST_OPERATORS = 4_096
"""Of one model; what an agent tells of more is left out, as are the ends of long names."""
MOST_KIND_CHARACTERS = 64


def runner_to_proto(runner: Runner) -> runner_pb2.Runner:
    """Return a runner as it is listed."""
    return runner_pb2.Runner(
        name=resource_names.RUNNER.name(runner.project, runner.runner_id),
        device=device_to_proto(runner.device),
        agent_version=runner.agent_version,
        state=enums.RUNNER_STATE.to_proto(runner.state),
        state_reason=runner.state_reason,
        last_seen_time=timestamp_to_proto(runner.last_seen),
        labels=runner.labels,
        targets=runner.targets,
        measurement_count=runner.measurement_count,
        failure_count=runner.failure_count,
    )


def device_to_proto(device: DeviceDescription) -> runner_pb2.DeviceDescription:
    """Return the description of a device."""
    return runner_pb2.DeviceDescription(
        core=device.core,
        display_name=device.display_name,
        core_count=device.core_count,
        clock_mhz=device.clock_mhz,
        isa_features=device.isa_features,
        ram_bytes=device.ram_bytes,
        operating_system=device.operating_system,
        runtimes=[
            runner_pb2.RunnerRuntime(
                name=runtime.name,
                version=runtime.version,
                formats=[enums.MODEL_FORMAT.to_proto(value) for value in runtime.formats],
            )
            for runtime in device.runtimes
        ],
        sensors=device.sensors,
    )


def device_from_proto(message: runner_pb2.DeviceDescription) -> DeviceDescription:
    """Return the description of a device.

    Raises:
        ImplausibleReportError: No device is like that.
        InvalidRequestError: An unknown format.
    """
    return DeviceDescription(
        core=message.core,
        display_name=message.display_name,
        core_count=message.core_count,
        clock_mhz=message.clock_mhz if message.HasField("clock_mhz") else None,
        isa_features=tuple(message.isa_features),
        ram_bytes=message.ram_bytes,
        operating_system=message.operating_system,
        runtimes=tuple(
            DeviceRuntime(
                name=runtime.name,
                version=runtime.version,
                formats=enums.MODEL_FORMAT.several(
                    runtime.formats, field="hello.device.runtimes.formats"
                ),
            )
            for runtime in message.runtimes
        ),
        sensors=tuple(message.sensors),
    )


def hello_from_proto(message: runner_pb2.RunnerHello) -> RunnerHello:
    """Return who an agent is. Raises as `device_from_proto`."""
    return RunnerHello(
        protocol_version=message.protocol_version,
        agent_version=message.agent_version,
        instance_id=message.instance_id,
        device=device_from_proto(message.device),
        labels=dict(message.labels),
        targets=tuple(message.targets),
        capacity=message.capacity or 1,
    )


def failure_kind_from_proto(number: int) -> FailureKind:
    """Return the kind; one that this version does not know is INTERNAL."""
    known = runner_pb2.WorkFailure.Kind.values()
    if number == 0 or number not in known:
        return FailureKind.INTERNAL
    return enums.FAILURE_KIND.from_proto(number, field="failure.kind")


def measurement_from_proto(message: runner_pb2.Measurement) -> Measurement:
    """Return what was measured, not checked yet: `Measurement.check` does that."""
    return Measurement(
        measured_latency_ms_p10=message.measured_latency_ms_p10 or None,
        measured_latency_ms_p50=message.measured_latency_ms_p50,
        measured_latency_ms_p90=message.measured_latency_ms_p90,
        measured_latency_ms_p99=(
            message.measured_latency_ms_p99 if message.HasField("measured_latency_ms_p99") else None
        ),
        measured_throughput_per_s=message.measured_throughput_per_s,
        run_count=message.run_count,
        warm_up_count=message.warm_up_count,
        settled=message.settled,
        noise_ratio=message.noise_ratio,
        measured_peak_ram_bytes=(
            message.measured_peak_ram_bytes if message.HasField("measured_peak_ram_bytes") else None
        ),
        process_peak_ram_bytes=(
            message.process_peak_ram_bytes if message.HasField("process_peak_ram_bytes") else None
        ),
        energy=_energy_from_proto(message.energy) if message.HasField("energy") else None,
        before=_state_from_proto(message.before),
        after=_state_from_proto(message.after),
        throttled=message.throttled,
        runtime_name=message.runtime.name,
        runtime_version=message.runtime.version,
        notes=tuple(note[:256] for note in message.notes[:16]),
        operators=tuple(
            OperatorTime(
                kind=item.kind[:MOST_KIND_CHARACTERS],
                latency_ms=item.measured_latency_ms,
                output_elements=item.output_element_count,
            )
            for item in message.operators[:MOST_OPERATORS]
        ),
    )


def command_to_proto(command: Command) -> runner_pb2.ConnectRunnerResponse:
    """Return what an agent is told."""
    if isinstance(command, Welcome):
        return runner_pb2.ConnectRunnerResponse(
            welcome=runner_pb2.RunnerWelcome(
                server_version=command.server_version,
                heartbeat_interval=duration_to_proto(command.heartbeat_seconds),
            )
        )
    if isinstance(command, Offer):
        return runner_pb2.ConnectRunnerResponse(
            offer=runner_pb2.WorkOffer(
                order_id=command.order_id,
                model_artifact=resource_names.ARTIFACT.name(
                    command.project, command.artifact_digest
                ),
                format=enums.MODEL_FORMAT.to_proto(command.format),
                runtime=command.runtime,
                thread_count=command.thread_count,
                timeout=duration_to_proto(command.timeout_seconds),
                min_run_count=command.min_run_count,
                min_duration=duration_to_proto(command.min_seconds),
                target=command.target,
                wants_operators=command.wants_operators,
            )
        )
    return runner_pb2.ConnectRunnerResponse(
        cancellation=runner_pb2.WorkCancellation(order_id=command.order_id)
    )


def _energy_from_proto(message: runner_pb2.EnergyReading) -> EnergyReading:
    return EnergyReading(
        energy_mj=message.measured_energy_mj,
        mean_power_mw=message.mean_power_mw,
        idle_power_mw=message.idle_power_mw if message.HasField("idle_power_mw") else None,
        source=message.source[:256],
    )


def _state_from_proto(message: runner_pb2.DeviceState) -> DeviceState:
    return DeviceState(
        clock_mhz=message.clock_mhz if message.HasField("clock_mhz") else None,
        temperature_c=message.temperature_c if message.HasField("temperature_c") else None,
    )
