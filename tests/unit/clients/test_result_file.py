"""`result.json`: everything a server tells of a job is in it, under the documented names."""

import json

from fakes import results
from fakes.job_messages import dataset_message, event_message, job_message, trial_message
from tightfit.result_file import build_result
from tightfit.v1 import job_pb2

METRICS = (
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "macs",
    "estimated_latency_ms",
    "estimated_energy_mj",
    "estimated_peak_ram_bytes",
    "flash_bytes",
    "file_bytes",
)


def rebuilt(expected: results.Result) -> results.Result:
    name = expected["job"]["name"]
    return build_result(
        job_message(expected),
        [trial_message(item, job=name) for item in expected["trials"]],
        [event_message(item, job=name) for item in expected["events"]],
        model_file=expected["model"]["file"],
        dataset=dataset_message(expected),
        client_version=expected["client_version"],
    )


def test_a_success_is_told_in_full() -> None:
    assert rebuilt(results.succeeded()) == results.succeeded()


def test_an_infeasible_job_is_told_in_full() -> None:
    result = rebuilt(results.infeasible())
    assert result == results.infeasible()
    assert result["best"] is None


def test_metrics_are_flat_and_estimates_have_intervals() -> None:
    result = rebuilt(results.succeeded())
    for figures in (result["baseline"], result["baseline_int8"], result["best"]):
        assert set(METRICS) <= set(figures)
        assert set(figures["estimated_latency_ms"]) == {"value", "low", "high"}


def test_limits_that_are_absent_are_null() -> None:
    budget = rebuilt(results.succeeded())["budget"]
    assert budget["max_latency_ms"] == 18
    assert budget["max_energy_mj"] is None


def test_a_job_that_has_only_been_queued_is_told_as_far_as_known() -> None:
    job = job_pb2.CompressionJob(name=results.JOB, state=job_pb2.CompressionJob.STATE_QUEUED)
    result = build_result(job, (), ())
    assert result["state"] == "QUEUED"
    assert result["baseline"] is None
    assert result["trials"] == []
    assert result["dataset"] is None
    assert result["job"]["elapsed_seconds"] is None
    json.dumps(result, allow_nan=False)


def test_values_of_a_newer_server_are_kept_as_numbers() -> None:
    job = job_pb2.CompressionJob(name=results.JOB)
    job.result.infeasibility.binding.append(77)  # type: ignore[arg-type]  # unknown to this client
    assert build_result(job, (), ())["infeasibility"]["binding"] == ["77"]


def test_a_dataset_that_is_gone_leaves_its_name_and_digest() -> None:
    expected = results.succeeded()
    told = build_result(job_message(expected), (), ())["dataset"]
    assert told == expected["dataset"] | {"display_name": "", "task": "", "metric": ""}
