"""Where spans of work are told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

Attribute = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class SpanRecord:
    """A span that ended in a process without a tracer of its own: plain data, fit for any channel.

    Ids are lower-case hex, of 16 bytes for the trace and 8 for spans, as in W3C Trace Context; times
    are nanoseconds since 1970.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    error: str = ""


class Tracer(Protocol):
    """Opens spans that follow the flow of control, over awaits and into threads of `asyncio.to_thread`."""

    def span(
        self, name: str, *, parent: str, is_call: bool, attributes: Mapping[str, Attribute]
    ) -> AbstractContextManager[None]:
        """Open a span below `parent` (W3C `traceparent`), or where that is empty below the open one.

        An exception that leaves the block marks the span as failed. `is_call` says that it answers
        another process.
        """
        ...

    def current(self) -> str:
        """Return the `traceparent` of the open span, or "" where none is open or recorded."""
        ...

    def adopt(self, spans: Sequence[SpanRecord]) -> None:
        """Take spans over that ended elsewhere."""
        ...
