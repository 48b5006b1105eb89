"""Verification: measured once per file, residuals counted, and a job that goes on when devices do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.runners import (
    PI,
    Measurer,
    RecordingRunnerTelemetry,
    make_measurement,
    make_order,
)
from fakes.stores import InMemoryStore
from fakes.use_cases import make_cost
from tightfit_service.application.hardware.measurements import (
    REQUIRED_WAIT_SECONDS,
    DeviceMeasurements,
    order_digest,
)
from tightfit_service.domain.budget import Budget, Constraint, Quantity
from tightfit_service.domain.errors import MeasurementFailedError, NoRunnerError, TightfitError
from tightfit_service.domain.hardware import ModelFormat, Runtime
from tightfit_service.domain.measurement import EnergyReading, Measurement, Verification
from tightfit_service.domain.trial import Metrics, cost_of, violations

ENERGY = EnergyReading(energy_mj=1.2, mean_power_mw=600.0, source="a meter")
SEEN = make_measurement(
    runner="bench",
    runtime_name="litert",
    runtime_version="2.3.0",
    energy=ENERGY,
    measured_peak_ram_bytes=2_048,
)


@pytest.fixture
def telemetry() -> RecordingRunnerTelemetry:
    return RecordingRunnerTelemetry()


def make(
    telemetry: RecordingRunnerTelemetry, *answers: Measurement | TightfitError
) -> tuple[DeviceMeasurements, Measurer]:
    measurer = Measurer(*answers)
    return (
        DeviceMeasurements(measurer=measurer, results=InMemoryStore(), telemetry=telemetry),
        measurer,
    )


async def test_a_file_is_measured_once_per_target(telemetry: RecordingRunnerTelemetry) -> None:
    service, measurer = make(telemetry, SEEN, SEEN)
    first = await service.measure(make_order())
    again = await service.measure(make_order(job_id="another", timeout_seconds=9.0))
    await service.measure(make_order(target=replace(PI, runtime=Runtime(name="ONNX Runtime"))))

    assert first == again == SEEN
    assert len(measurer.orders) == 2


async def test_what_did_not_settle_is_measured_again(telemetry: RecordingRunnerTelemetry) -> None:
    service, measurer = make(telemetry, make_measurement(settled=False), SEEN)
    assert not (await service.measure(make_order())).settled
    assert (await service.measure(make_order())).settled
    assert len(measurer.orders) == 2


def test_the_identity_is_what_was_measured_and_not_for_whom() -> None:
    order = make_order()
    assert order_digest(order) == order_digest(replace(order, job_id="b", wait_seconds=3.0))
    others = [
        replace(order, project="another"),
        replace(order, artifact_digest="1" * 64),
        replace(order, format=ModelFormat.ONNX),
        replace(order, target=replace(PI, clock_mhz=1_000.0)),
        replace(order, labels={"lab": "a"}),
        replace(order, min_run_count=1),
    ]
    assert len({order_digest(other) for other in (order, *others)}) == 7


async def test_residuals_are_measured_over_estimated(telemetry: RecordingRunnerTelemetry) -> None:
    service, _ = make(telemetry, SEEN)
    await service.measure(make_order(), estimate=make_cost(10.0))

    assert [(target, quantity) for target, quantity, _ in telemetry.residuals] == [
        ("pi-5", "latency"),
        ("pi-5", "energy"),
    ]
    assert [ratio for *_, ratio in telemetry.residuals] == pytest.approx([0.2, 1.2])


@pytest.mark.parametrize(
    "error", [NoRunnerError("nobody is there"), MeasurementFailedError("it crashed")]
)
async def test_a_job_goes_on_with_estimates_and_says_so(
    telemetry: RecordingRunnerTelemetry, error: TightfitError
) -> None:
    service, measurer = make(telemetry, error)
    outcome = await service.verify(make_order(), Verification.IF_AVAILABLE)

    assert outcome.measurement is None
    assert outcome.note == f"not measured, the figures are estimates: {error.message}"
    assert measurer.orders[0].wait_seconds == 0


async def test_required_waits_for_a_runner_and_none_asks_nobody(
    telemetry: RecordingRunnerTelemetry,
) -> None:
    service, measurer = make(telemetry, SEEN)
    assert (await service.verify(make_order(), Verification.NONE)).measurement is None
    assert measurer.orders == []
    notes: list[str] = []
    outcome = await service.verify(make_order(), Verification.REQUIRED, on_note=notes.append)

    assert outcome.measurement == SEEN
    assert outcome.note == "measured on bench with litert 2.3.0: 2 ms, p90 2.2 ms over 200 runs"
    assert measurer.orders[0].wait_seconds == REQUIRED_WAIT_SECONDS
    assert notes == ["measured on bench"]


@pytest.mark.parametrize(("limit_ms", "is_missed"), [(2.1, True), (2.2, False)])
def test_a_budget_that_is_missed_on_the_device_is_missed(limit_ms: float, is_missed: bool) -> None:
    budget = Budget(constraints=(Constraint(quantity=Quantity.LATENCY, limit=limit_ms),))
    estimate = make_cost(0.5)
    met = Metrics(cost=estimate, file_bytes=1)

    assert violations(met, budget, baseline_accuracy=None) == ()
    missed = violations(replace(met, measured=SEEN), budget, baseline_accuracy=None)
    assert [violation.actual for violation in missed] == ([2.2] if is_missed else [])


def test_a_budget_that_only_the_interval_misses_is_met_when_the_device_meets_it() -> None:
    budget = Budget(constraints=(Constraint(quantity=Quantity.LATENCY, limit=3.0),))
    wide = Metrics(cost=make_cost(2.0), file_bytes=1)
    assert violations(wide, budget, baseline_accuracy=None)
    assert not violations(replace(wide, measured=SEEN), budget, baseline_accuracy=None)


def test_each_quantity_is_held_against_what_was_measured_of_it() -> None:
    metrics = Metrics(cost=make_cost(50.0), file_bytes=4_096, measured=SEEN)
    assert cost_of(metrics, Quantity.LATENCY) == 2.2
    assert cost_of(metrics, Quantity.ENERGY) == 1.2
    assert cost_of(metrics, Quantity.RAM) == metrics.cost.peak_ram_bytes.high
    assert cost_of(metrics, Quantity.SIZE) == 4_096
    bare = replace(metrics, measured=make_measurement())
    assert cost_of(bare, Quantity.ENERGY) == metrics.cost.energy_mj.high


def test_unrest_is_told() -> None:
    restless = make_measurement(settled=False, noise_ratio=0.3, throttled=True)
    assert restless.summary.endswith("unsettled by 30%, throttled")
