"""One trace from a client's call to the stages of a trial in a worker process, and the ids in the log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fakes.trace_collector import SeenSpan, TraceCollector
from running_server import RunningServer
from tightfit import Client, compression_spec
from tightfit.v1 import budget_pb2, job_pb2

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
TARGET = "nucleo-h7a3zi-q"


@pytest.fixture
def collector() -> Iterator[TraceCollector]:
    running = TraceCollector()
    yield running
    running.stop()


def _chain(span: SeenSpan, spans: dict[str, SeenSpan]) -> list[str]:
    """Return the names from a span up to the root."""
    names = [span.name]
    while span.parent_id in spans:
        span = spans[span.parent_id]
        names.append(span.name)
    return names


def _spec(client: Client) -> job_pb2.CompressionSpec:
    return compression_spec(
        model=client.upload_model(EXAMPLE / "digits.onnx").name,
        dataset=client.upload_dataset(EXAMPLE / "dataset.yaml").name,
        target=TARGET,
        budget=budget_pb2.Budget(max_latency_ms=1e-3),
        max_trials=1,
        max_seconds=5,
    )


@pytest.mark.long
def test_a_trace_leads_from_the_call_to_the_worker_and_the_log_has_the_ids(
    tmp_path: Path, collector: TraceCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIGHTFIT_TRACES_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
    server = RunningServer(tmp_path / "data").start()
    server_pid = server.pid
    here = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(here))
    try:
        with server.client() as client:
            spec = _spec(client)
            with provider.get_tracer("test").start_as_current_span("a user's program"):
                name = client.create_job(spec).name
            ended = client.wait(name)
        assert ended.state == job_pb2.CompressionJob.STATE_INFEASIBLE, ended.error
    finally:
        assert server.stop() == 0
        provider.shutdown()

    (root,) = here.get_finished_spans()
    assert root.context is not None
    trace_id = f"{root.context.trace_id:032x}"
    spans = {span.span_id: span for span in collector.spans if span.trace_id == trace_id}
    create = [s for s in spans.values() if s.name == "tightfit.v1.CompressionService/CreateJob"]
    assert [span.parent_id for span in create] == [f"{root.context.span_id:016x}"]
    chains = {tuple(_chain(span, spans)) for span in spans.values()}
    whole = (
        "stage evaluate",
        "work",
        "unit",
        "trial",
        "job",
        "tightfit.v1.CompressionService/CreateJob",
    )
    assert whole in chains
    work = next(span for span in spans.values() if span.name == "work")
    assert int(work.attributes["tightfit.pid"]) != server_pid

    lines = [json.loads(line) for line in _log(tmp_path) if line.startswith("{")]
    job_id = name.rpartition("/")[2]
    (end,) = [line for line in lines if line["event"] == "job.ended"]
    assert end["job_id"] == job_id
    assert end["state"] == "infeasible"
    assert end["ran_seconds"] > 0
    trials = [line for line in lines if line["event"] == "unit.ok" and line["kind"] == "trial"]
    assert trials
    assert all(line["job_id"] == job_id and "trial" in line for line in trials)
    (created,) = [line for line in lines if line["event"] == "job.created"]
    assert created["request_id"]


def _log(tmp_path: Path) -> list[str]:
    return (tmp_path / "data" / "server.log").read_text().splitlines()
