"""The metrics are scraped over HTTP and parsed as Prometheus does it."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.records import make_job, make_trial
from fakes.use_cases import make_cost
from tightfit_service.adapters.telemetry.metrics_port import MetricsPort
from tightfit_service.adapters.telemetry.prometheus import PrometheusTelemetry
from tightfit_service.adapters.telemetry.series import BoundedLabel
from tightfit_service.domain.errors import UnavailableError
from tightfit_service.domain.job import Job, JobState
from tightfit_service.domain.quantities import Accuracy
from tightfit_service.domain.trial import Metrics, Trial, TrialRole, TrialState

Scrape = Callable[..., float | None]


@pytest.fixture
def telemetry() -> PrometheusTelemetry:
    return PrometheusTelemetry()


@pytest.fixture
def text(telemetry: PrometheusTelemetry) -> Iterator[Callable[[], str]]:
    """Fetches the metrics over HTTP."""
    port = MetricsPort(registry=telemetry.registry, host="127.0.0.1", port=0)
    address = port.start()

    def fetch() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            body: bytes = answer.read()
        return body.decode()

    yield fetch
    port.stop()


@pytest.fixture
def scrape(text: Callable[[], str]) -> Scrape:
    """Returns the value of one series, or None where there is none."""

    def value(name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(text()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return float(sample.value)
        return None

    return value


def _metrics(accuracy: float) -> Metrics:
    known = Accuracy(value=accuracy, low=accuracy, high=accuracy, sample_count=10)
    return Metrics(cost=make_cost(8.0), file_bytes=100, accuracy=known)


def _walk(telemetry: PrometheusTelemetry, job: Job, *states: JobState) -> Job:
    """Report the states of a job, five seconds apart."""
    telemetry.job_state(job, None)
    for state in states:
        before = job.state
        job = replace(job, state=state, update_time=job.update_time + timedelta(seconds=5))
        telemetry.job_state(job, before)
    return job


def test_rpcs_are_counted_by_method_and_code(
    telemetry: PrometheusTelemetry, scrape: Scrape
) -> None:
    telemetry.rpc_finished("tightfit.v1.A/B", "OK", 0.02)
    telemetry.rpc_finished("tightfit.v1.A/B", "OK", 0.02)
    telemetry.rpc_finished("tightfit.v1.A/B", "NOT_FOUND", 0.2)

    assert scrape("tightfit_rpcs_total", method="tightfit.v1.A/B", code="OK") == 2
    assert scrape("tightfit_rpcs_total", method="tightfit.v1.A/B", code="NOT_FOUND") == 1
    bucket = "tightfit_rpc_duration_seconds_bucket"
    assert scrape(bucket, method="tightfit.v1.A/B", le="0.025") == 2
    assert scrape(bucket, method="tightfit.v1.A/B", le="+Inf") == 3


def test_jobs_end_in_an_outcome(telemetry: PrometheusTelemetry, scrape: Scrape) -> None:
    _walk(telemetry, make_job("works"), JobState.RUNNING)
    _walk(telemetry, make_job("done"), JobState.RUNNING, JobState.SUCCEEDED)
    _walk(telemetry, make_job("dropped"), JobState.CANCELLED)

    assert scrape("tightfit_jobs_finished_total", outcome="succeeded") == 1
    assert scrape("tightfit_jobs_finished_total", outcome="cancelled") == 1
    assert scrape("tightfit_jobs_finished_total", outcome="failed") == 0


def test_the_queue_is_shown_as_the_database_has_it(
    telemetry: PrometheusTelemetry, scrape: Scrape
) -> None:
    telemetry.queue_seen({JobState.QUEUED: 3, JobState.RUNNING: 1}, oldest_seconds=12.5)

    assert scrape("tightfit_jobs", state="queued") == 3
    assert scrape("tightfit_jobs", state="running") == 1
    assert scrape("tightfit_oldest_queued_job_age_seconds") == 12.5
    telemetry.queue_seen({}, oldest_seconds=0.0)
    assert scrape("tightfit_jobs", state="queued") == 0
    assert scrape("tightfit_jobs", state="running") == 0


def test_waits_in_the_queue_are_counted(telemetry: PrometheusTelemetry, scrape: Scrape) -> None:
    telemetry.job_waited(5.0)
    telemetry.job_waited(-0.5)

    assert scrape("tightfit_job_queue_wait_seconds_count") == 2
    assert scrape("tightfit_job_queue_wait_seconds_sum") == 5


def test_progress_of_a_running_job_is_a_time_that_goes_with_the_job(
    telemetry: PrometheusTelemetry, scrape: Scrape
) -> None:
    telemetry.job_progressed("j1")
    told = scrape("tightfit_job_last_progress_timestamp_seconds", job_id="j1")

    assert told is not None
    assert told > datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    telemetry.best_so_far("j1", make_trial())
    assert scrape("tightfit_job_last_progress_timestamp_seconds", job_id="j1") == told
    telemetry.best_so_far("j1", None)
    assert scrape("tightfit_job_last_progress_timestamp_seconds", job_id="j1") is None


def test_dependencies_certificates_and_units_are_shown(
    telemetry: PrometheusTelemetry, scrape: Scrape
) -> None:
    telemetry.dependency_checked("database", is_up=True, seconds=0.002)
    telemetry.dependency_checked("artifacts", is_up=True, seconds=0.2)
    telemetry.dependency_checked("artifacts", is_up=False, seconds=5.0)
    telemetry.certificate_expires("server", datetime(2030, 1, 1, tzinfo=UTC))
    telemetry.unit_finished("trial", "failed", 3.0)
    telemetry.rpc_refused("RESOURCE_EXHAUSTED")

    assert scrape("tightfit_dependency_up", dependency="database") == 1
    assert scrape("tightfit_dependency_up", dependency="artifacts") == 0
    failed = {"dependency": "artifacts", "result": "failed"}
    assert scrape("tightfit_dependency_check_duration_seconds_count", **failed) == 1
    end = scrape("tightfit_certificate_not_after_timestamp_seconds", certificate="server")
    assert end == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    assert scrape("tightfit_work_unit_duration_seconds_sum", kind="trial", result="failed") == 3
    assert scrape("tightfit_rpcs_refused_total", reason="RESOURCE_EXHAUSTED") == 1


def test_the_version_is_a_label(telemetry: PrometheusTelemetry, scrape: Scrape) -> None:
    assert scrape("tightfit_build_info", version=metadata.version("tightfit-service")) == 1


def test_labels_beyond_the_bound_become_other() -> None:
    bounded = BoundedLabel(most=2)

    assert [bounded(value) for value in ("a", "b", "c", "a", "d")] == [
        "a",
        "b",
        "other",
        "a",
        "other",
    ]


def test_calls_of_many_methods_open_no_more_series_than_allowed(
    telemetry: PrometheusTelemetry, text: Callable[[], str]
) -> None:
    for number in range(500):
        telemetry.rpc_finished(f"tightfit.v1.A/M{number}", "OK", 0.1)

    assert len(re.findall(r"^tightfit_rpcs_total\{", text(), re.MULTILINE)) == 101


@pytest.mark.parametrize(
    ("trial", "result"),
    [
        (make_trial(metrics=_metrics(0.9)), "feasible"),
        (make_trial(), "infeasible"),
        (make_trial(state=TrialState.STOPPED), "stopped"),
        (make_trial(state=TrialState.FAILED, error="x"), "failed"),
    ],
)
def test_trials_are_counted_by_result(
    telemetry: PrometheusTelemetry, scrape: Scrape, trial: Trial, result: str
) -> None:
    telemetry.trial_finished("j", replace(trial, role=TrialRole.FINALIST))

    assert scrape("tightfit_trials_total", role="finalist", result=result) == 1
    assert scrape("tightfit_trial_stage_duration_seconds_sum", stage="recover") == 1.5


def test_the_best_of_a_running_job_is_shown_and_goes_with_the_job(
    telemetry: PrometheusTelemetry, scrape: Scrape, text: Callable[[], str]
) -> None:
    telemetry.best_so_far("j1", make_trial(metrics=_metrics(0.8)))
    telemetry.best_so_far("j1", make_trial(metrics=_metrics(0.9)))
    telemetry.best_so_far("j2", make_trial(metrics=_metrics(0.7)))

    assert scrape("tightfit_job_best_accuracy_ratio", job_id="j1") == 0.9
    assert scrape("tightfit_job_best_estimated_latency_seconds", job_id="j1") == pytest.approx(
        0.008
    )
    assert scrape("tightfit_job_best_estimated_energy_joules", job_id="j1") == pytest.approx(0.0008)
    assert scrape("tightfit_job_best_estimated_peak_ram_bytes", job_id="j1") == 1024
    assert scrape("tightfit_job_best_flash_bytes", job_id="j1") == 2048
    telemetry.best_so_far("j1", None)
    assert 'job_id="j1"' not in text()
    assert scrape("tightfit_job_best_accuracy_ratio", job_id="j2") == 0.7
    telemetry.best_so_far("never-seen", None)


def test_a_best_trial_without_metrics_shows_nothing(
    telemetry: PrometheusTelemetry, text: Callable[[], str]
) -> None:
    telemetry.best_so_far("j", make_trial())

    assert 'job_id="j"' not in text()


def test_work_is_counted(telemetry: PrometheusTelemetry, scrape: Scrape) -> None:
    telemetry.emulator_called("cortex-m", 0.002)
    telemetry.worker_restarted("memory")
    telemetry.artifact_bytes("received", 1000)
    telemetry.artifact_bytes("received", 24)
    telemetry.cache_lookup(hit=True)
    telemetry.cache_lookup(hit=False)
    telemetry.store_request("s3", "put", "busy", 0.02)
    telemetry.store_retried("s3", "503")

    assert scrape("tightfit_emulator_call_duration_seconds_count", emulator="cortex-m") == 1
    assert scrape("tightfit_worker_restarts_total", reason="memory") == 1
    assert scrape("tightfit_artifact_bytes_total", direction="received") == 1024
    assert scrape("tightfit_work_cache_lookups_total", result="hit") == 1
    assert scrape("tightfit_work_cache_lookups_total", result="miss") == 1
    request = {"store": "s3", "operation": "put", "outcome": "busy"}
    seconds = "tightfit_artifact_store_request_duration_seconds"
    assert scrape(f"{seconds}_count", **request) == 1
    assert scrape(f"{seconds}_bucket", le="0.01", **request) == 0
    assert scrape(f"{seconds}_bucket", le="0.025", **request) == 1
    assert scrape("tightfit_artifact_store_retries_total", store="s3", reason="503") == 1


def test_runners_and_measurements_are_counted(
    telemetry: PrometheusTelemetry, scrape: Scrape
) -> None:
    runners = telemetry.runners
    runners.runner_states({("idle", "pi-5"): 2, ("busy", "pi-5"): 1})
    runners.runner_states({("idle", "pi-5"): 3})
    runners.measurement_finished("pi-5", "measured")
    runners.measurement_waited(2.0)
    runners.measurement_residual("pi-5", "latency", 1.07)

    assert scrape("tightfit_runners", state="idle", target="pi-5") == 3
    assert scrape("tightfit_runners", state="busy", target="pi-5") == 0
    assert scrape("tightfit_measurements_total", target="pi-5", outcome="measured") == 1
    assert scrape("tightfit_measurement_queue_wait_seconds_bucket", le="1.0") == 0
    assert scrape("tightfit_measurement_queue_wait_seconds_bucket", le="5.0") == 1
    residual = {"target": "pi-5", "quantity": "latency"}
    assert scrape("tightfit_measurement_residual_ratio_bucket", le="1.05", **residual) == 0
    assert scrape("tightfit_measurement_residual_ratio_bucket", le="1.1", **residual) == 1


def test_two_services_in_one_process_do_not_mix(scrape: Scrape) -> None:
    PrometheusTelemetry().worker_restarted("crashed")

    assert scrape("tightfit_worker_restarts_total", reason="crashed") is None


def test_every_metric_is_documented_with_its_labels_and_type(
    telemetry: PrometheusTelemetry,
) -> None:
    page = Path(__file__).parents[4] / "docs" / "metrics.md"
    rows = re.findall(
        r"^\| `(tightfit_\w+)` \| (\w+) \| ([^|]*)\|", page.read_text("utf-8"), re.MULTILINE
    )
    documented = {
        (name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows
    }

    actual = set()
    for metric in telemetry.registry._collector_to_names:
        name = getattr(metric, "_name", "")
        if name.startswith("tightfit_"):
            kind = metric._type  # type: ignore[attr-defined]  # no public way to ask
            labels = tuple(metric._labelnames)  # type: ignore[attr-defined]  # likewise
            actual.add((f"{name}_total" if kind == "counter" else name, kind, labels))

    assert documented == actual


def test_a_port_in_use_is_refused(telemetry: PrometheusTelemetry) -> None:
    first = MetricsPort(registry=telemetry.registry, host="127.0.0.1", port=0)
    address = first.start()
    second = MetricsPort(
        registry=telemetry.registry, host="127.0.0.1", port=int(address.rpartition(":")[2])
    )

    with pytest.raises(UnavailableError) as caught:
        second.start()

    assert caught.value.field == "metrics_listen"
    first.stop()
    first.stop()
