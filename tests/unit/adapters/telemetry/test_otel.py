"""Spans through OpenTelemetry's SDK, those of other processes among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tightfit.credentials import Credentials
from tightfit.tracing import call_metadata, trace_metadata
from tightfit_service.adapters.telemetry.otel import OtelTracer
from tightfit_service.application import tracing
from tightfit_service.application.tracing import RecordingTracer

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[OtelTracer]:
    # gives each span on as it ends
    made = OtelTracer(SimpleSpanProcessor(exporter), resource={"service.name": "tightfit"})
    before = tracing.use_tracer(made)
    yield made
    tracing.use_tracer(before)
    made.close()


def test_spans_nest_and_continue_a_trace(
    tracer: OtelTracer, exporter: InMemorySpanExporter
) -> None:
    with tracing.span("call", parent=PARENT, is_call=True), tracing.span("unit", kind="trial"):
        here = tracing.current()

    unit, call = exporter.get_finished_spans()
    assert call.parent is not None
    assert unit.parent is not None
    assert call.context is not None
    assert unit.context is not None
    assert f"{call.context.trace_id:032x}" == "ab" * 16
    assert f"{call.parent.span_id:016x}" == "cd" * 8
    assert call.kind is trace.SpanKind.SERVER
    assert unit.parent.span_id == call.context.span_id
    assert unit.attributes == {"tightfit.kind": "trial"}
    assert here == f"00-{'ab' * 16}-{unit.context.span_id:016x}-01"


def test_a_span_without_a_parent_begins_a_trace(
    tracer: OtelTracer, exporter: InMemorySpanExporter
) -> None:
    with pytest.raises(ValueError, match="bad"), tracing.span("job"):
        raise ValueError("bad")

    (job,) = exporter.get_finished_spans()
    assert job.parent is None
    assert job.status.status_code is trace.StatusCode.ERROR


def test_spans_of_a_worker_are_sent_on(tracer: OtelTracer, exporter: InMemorySpanExporter) -> None:
    recorder = RecordingTracer()
    with tracing.span("unit", parent=PARENT):
        parent = tracing.current()
        with (
            pytest.raises(KeyError),
            recorder.span("work", parent=parent, is_call=False, attributes={"pid": 7}),
        ):
            raise KeyError("x")
        tracing.adopt(tracing.as_messages(recorder.take()))

    work, unit = exporter.get_finished_spans()
    assert work.parent is not None
    assert unit.context is not None
    assert work.context is not None
    assert work.parent.span_id == unit.context.span_id
    assert work.context.trace_id == unit.context.trace_id
    assert work.attributes == {"tightfit.pid": 7}
    assert work.status.status_code is trace.StatusCode.ERROR
    assert work.start_time is not None
    assert unit.start_time is not None
    assert work.start_time >= unit.start_time


def test_the_client_tells_the_open_span_of_its_program() -> None:
    provider = TracerProvider()
    assert trace_metadata() == ()
    with provider.get_tracer("program").start_as_current_span("step") as span:
        context = span.get_span_context()
        ((key, value),) = trace_metadata()
        together = call_metadata(Credentials(token="abc"))
    provider.shutdown()

    assert key == "traceparent"
    assert value.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert tracing.is_traceparent(value)
    assert dict(together) == {"authorization": "Bearer abc", "traceparent": value}
