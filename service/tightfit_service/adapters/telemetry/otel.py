"""Traces by OpenTelemetry; the extra `otel` brings what this module imports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tightfit_service.application.ports.tracing import Attribute, SpanRecord

_SCOPE = "tightfit"
_KEY = "traceparent"


class OtelTracer:
    """Implements `Tracer` by an SDK provider of its own; the process-wide one is left to its owner.

    Args:
        processor: Where spans go.
        resource: What describes this process, besides what OTEL_RESOURCE_ATTRIBUTES says.
    """

    def __init__(self, processor: SpanProcessor, *, resource: Mapping[str, str]) -> None:
        self._processor = processor
        self._resource = Resource.create(dict(resource))
        self._provider = TracerProvider(resource=self._resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SCOPE)
        self._context = TraceContextTextMapPropagator()

    @contextmanager
    def span(
        self, name: str, *, parent: str, is_call: bool, attributes: Mapping[str, Attribute]
    ) -> Iterator[None]:
        """See `Tracer`."""
        context: Context | None = None
        if parent:
            context = self._context.extract({_KEY: parent}, context=Context())
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=SpanKind.SERVER if is_call else SpanKind.INTERNAL,
            attributes={f"{_SCOPE}.{key}": value for key, value in attributes.items()},
        ):
            yield

    def current(self) -> str:
        """See `Tracer`."""
        carrier: dict[str, str] = {}
        self._context.inject(carrier)
        return carrier.get(_KEY, "")

    def adopt(self, spans: Sequence[SpanRecord]) -> None:
        """See `Tracer`."""
        for record in spans:
            self._processor.on_end(self._readable(record))

    def close(self) -> None:
        """Send what is left, and stop."""
        self._provider.shutdown()

    def _readable(self, record: SpanRecord) -> ReadableSpan:
        return ReadableSpan(
            name=record.name,
            context=_span_context(record.trace_id, record.span_id),
            parent=_span_context(record.trace_id, record.parent_id),
            resource=self._resource,
            attributes={f"{_SCOPE}.{key}": value for key, value in record.attributes.items()},
            links=tuple[Link, ...](),
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, record.error) if record.error else Status(),
            start_time=record.start_ns,
            end_time=record.end_ns,
            instrumentation_scope=InstrumentationScope(_SCOPE),
        )


def otlp_tracer(endpoint: str, *, version: str, instance: str) -> OtelTracer:
    """Return a tracer that sends to a collector by OTLP over gRPC.

    Args:
        endpoint: `http://HOST:4317`, or https with the system's authorities. Headers, such as a token,
            come from OTEL_EXPORTER_OTLP_HEADERS.
        version: Of the service.
        instance: Name of this replica.
    """
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    exporter: SpanExporter = OTLPSpanExporter(endpoint=endpoint)
    resource = {
        "service.name": _SCOPE,
        "service.version": version,
        "service.instance.id": instance,
    }
    return OtelTracer(BatchSpanProcessor(exporter), resource=resource)


def _span_context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
