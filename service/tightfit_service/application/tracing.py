"""Traces: spans of work, told to the tracer of this process, which like the log is set once at the start.

Without a tracer, which is the default, opening a span costs a function call and loads nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

from tightfit_service.application.ports.tracing import Attribute, SpanRecord, Tracer

_SAMPLED = "01"
_MOST_ERROR_CHARS = 300


class NoTracer:
    """Implements `Tracer` by doing nothing."""

    def span(
        self, name: str, *, parent: str, is_call: bool, attributes: Mapping[str, Attribute]
    ) -> AbstractContextManager[None]:
        """See `Tracer`."""
        del name, parent, is_call, attributes
        return nullcontext()

    def current(self) -> str:
        """See `Tracer`."""
        return ""

    def adopt(self, spans: Sequence[SpanRecord]) -> None:
        """See `Tracer`."""


class RecordingTracer:
    """Implements `Tracer` by keeping the spans, for processes whose spans another one sends on."""

    def __init__(self) -> None:
        self._open: ContextVar[tuple[str, str]] = ContextVar("open_span", default=("", ""))
        self._ended: list[SpanRecord] = []

    @contextmanager
    def span(
        self, name: str, *, parent: str, is_call: bool, attributes: Mapping[str, Attribute]
    ) -> Iterator[None]:
        """See `Tracer`."""
        del is_call
        trace_id, parent_id = _ids(parent) if parent else self._open.get()
        if not trace_id:
            yield
            return
        span_id, start_ns, error = secrets.token_hex(8), time.time_ns(), ""
        token = self._open.set((trace_id, span_id))
        try:
            yield
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"[:_MOST_ERROR_CHARS]
            raise
        finally:
            self._open.reset(token)
            self._ended.append(
                SpanRecord(
                    name=name,
                    trace_id=trace_id,
                    span_id=span_id,
                    parent_id=parent_id,
                    start_ns=start_ns,
                    end_ns=time.time_ns(),
                    attributes=dict(attributes),
                    error=error,
                )
            )

    def current(self) -> str:
        """See `Tracer`."""
        trace_id, span_id = self._open.get()
        return f"00-{trace_id}-{span_id}-{_SAMPLED}" if trace_id else ""

    def adopt(self, spans: Sequence[SpanRecord]) -> None:
        """See `Tracer`."""
        self._ended.extend(spans)

    def take(self) -> Sequence[SpanRecord]:
        """Return the spans that ended since the last call."""
        ended, self._ended = self._ended, []
        return ended


class _Process:
    tracer: Tracer = NoTracer()


def use_tracer(tracer: Tracer) -> Tracer:
    """Tell spans of this process to a tracer from now on; return the one before."""
    before, _Process.tracer = _Process.tracer, tracer
    return before


def span(
    name: str, *, parent: str = "", is_call: bool = False, **attributes: Attribute
) -> AbstractContextManager[None]:
    """Open a span below `parent`, or where that is empty below the one that is open here."""
    return _Process.tracer.span(name, parent=parent, is_call=is_call, attributes=attributes)


def current() -> str:
    """Return the W3C `traceparent` of the open span, or ""."""
    return _Process.tracer.current()


def adopt(spans: Sequence[Mapping[str, Any]]) -> None:
    """Take over spans that another process sent as plain data (`as_messages`)."""
    if spans:
        _Process.tracer.adopt([SpanRecord(**item) for item in spans])


def as_messages(spans: Sequence[SpanRecord]) -> list[dict[str, Any]]:
    """Return spans as plain data."""
    return [asdict(item) for item in spans]


def is_traceparent(text: str) -> bool:
    """Whether a text is a `traceparent` of a trace that is recorded (flag `sampled`)."""
    parts = text.split("-")
    return (
        len(parts) == 4
        and [len(part) for part in parts] == [2, 32, 16, 2]
        and all(character in "0123456789abcdef" for part in parts for character in part)
        and parts[0] != "ff"
        and set(parts[1]) != {"0"}
        and set(parts[2]) != {"0"}
        and bool(int(parts[3], 16) & 1)
    )


def _ids(parent: str) -> tuple[str, str]:
    if not is_traceparent(parent):
        return "", ""
    _, trace_id, span_id, _ = parent.split("-")
    return trace_id, span_id
