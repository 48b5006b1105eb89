"""Verification in jobs, and measurements in their metrics, as they travel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.records import make_job, make_spec
from fakes.runners import make_measurement
from fakes.use_cases import make_cost
from tightfit.v1 import job_pb2, runner_pb2
from tightfit_service.api.codec.job import job_to_proto, request_from_proto
from tightfit_service.api.codec.metrics import metrics_to_proto
from tightfit_service.api.codec.runner import failure_kind_from_proto
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.measurement import EnergyReading, FailureKind, Verification
from tightfit_service.domain.trial import Metrics


def spec(number: int) -> job_pb2.CompressionSpec:
    made = job_pb2.CompressionSpec(
        model="projects/p/models/m", hardware_target="hardwareTargets/board"
    )
    made.verification = number  # type: ignore[assignment]  # also numbers that no version knows
    return made


@pytest.mark.parametrize(
    ("number", "verification"),
    [
        (0, Verification.NONE),
        (job_pb2.VERIFICATION_NONE, Verification.NONE),
        (job_pb2.VERIFICATION_IF_AVAILABLE, Verification.IF_AVAILABLE),
        (job_pb2.VERIFICATION_REQUIRED, Verification.REQUIRED),
    ],
)
def test_verification_is_read(number: int, verification: Verification) -> None:
    assert request_from_proto(spec(number), project_id="p").verification is verification


def test_an_unknown_verification_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_proto(spec(99), project_id="p")
    assert caught.value.field == "verification"


def test_a_job_tells_its_verification() -> None:
    job = make_job(spec=replace(make_spec(), verification=Verification.REQUIRED))
    assert job_to_proto(job).spec.verification == job_pb2.VERIFICATION_REQUIRED


def test_labels_of_runners_travel_both_ways() -> None:
    wanted = spec(job_pb2.VERIFICATION_REQUIRED)
    wanted.runner_labels["lab"] = "a"
    assert request_from_proto(wanted, project_id="p").runner_labels == {"lab": "a"}
    job = make_job(spec=replace(make_spec(), runner_labels={"lab": "a"}))
    assert dict(job_to_proto(job).spec.runner_labels) == {"lab": "a"}


@pytest.mark.parametrize(
    "labels", [{str(number): "x" for number in range(33)}, {"lab": "a" * 257}, {"k" * 257: ""}]
)
def test_more_labels_than_a_runner_can_carry_are_refused(labels: dict[str, str]) -> None:
    wanted = spec(job_pb2.VERIFICATION_REQUIRED)
    wanted.runner_labels.update(labels)
    with pytest.raises(InvalidRequestError) as caught:
        request_from_proto(wanted, project_id="p")
    assert caught.value.field == "runner_labels"


def test_what_was_measured_stands_beside_the_estimate() -> None:
    energy = EnergyReading(energy_mj=1.5, mean_power_mw=700.0, source="a meter")
    measured = make_measurement(runner="bench", runtime_name="litert", energy=energy)
    message = metrics_to_proto(Metrics(cost=make_cost(9.0), file_bytes=1, measured=measured))

    assert message.cost.estimated_latency_ms.value == 9.0
    assert message.measured.measured_latency_ms_p50 == 2.0
    assert message.measured.measured_energy_mj == 1.5
    assert not message.measured.HasField("measured_peak_ram_bytes")
    assert (message.measured.runner, message.measured.runtime) == ("bench", "litert")
    assert not metrics_to_proto(Metrics(cost=make_cost(), file_bytes=1)).HasField("measured")


def test_kinds_of_failures_are_read_and_unknown_ones_are_internal() -> None:
    for kind in FailureKind:
        number = runner_pb2.WorkFailure.Kind.Value(f"KIND_{kind.name}")
        assert failure_kind_from_proto(number) is kind
    assert failure_kind_from_proto(0) is FailureKind.INTERNAL
    assert failure_kind_from_proto(99) is FailureKind.INTERNAL
