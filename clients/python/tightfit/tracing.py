"""The trace that a call belongs to, where the program that makes it is traced by OpenTelemetry."""

from __future__ import annotations

import sys

from tightfit.credentials import Credentials

Metadata = tuple[tuple[str, str], ...]


def trace_metadata() -> Metadata:
    """Return the W3C `traceparent` of the open span as metadata of a call; nothing where none is open.

    A program that has spans has loaded OpenTelemetry, so it need not be loaded here to be asked.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ()
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ()
    ids = f"{context.trace_id:032x}-{context.span_id:016x}"
    return (("traceparent", f"00-{ids}-{int(context.trace_flags):02x}"),)


def call_metadata(credentials: Credentials) -> Metadata:
    """Return the metadata of a call: who calls, and the trace that it belongs to.

    Raises:
        InvalidInputError: The token's file cannot be read, or holds no token.
    """
    return (*(credentials.metadata() or ()), *trace_metadata())
