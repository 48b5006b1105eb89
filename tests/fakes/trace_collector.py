"""A collector of traces: what an OpenTelemetry collector is to a program that sends to it."""

from __future__ import annotations

from concurrent import futures
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, kw_only=True)
class SeenSpan:
    """A span as it arrived; ids are lower-case hex."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]


class TraceCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves OTLP over gRPC on a free port and keeps what arrives."""

    def __init__(self) -> None:
        self.spans: list[SeenSpan] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]  # generated without types
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(  # noqa: N802  # gRPC gives the name
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        SeenSpan(
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            attributes={
                                item.key: item.value.string_value or str(item.value.int_value)
                                for item in span.attributes
                            },
                        )
                    )
        return trace_service_pb2.ExportTraceServiceResponse()

    def stop(self) -> None:
        """Stop serving."""
        self._server.stop(None).wait()
