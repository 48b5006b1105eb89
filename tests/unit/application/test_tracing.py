"""Spans that are recorded without a library, and that cost nothing where nobody listens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tightfit_service.application import tracing
from tightfit_service.application.tracing import NoTracer, RecordingTracer, is_traceparent

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def tracer() -> Iterator[RecordingTracer]:
    recorder = RecordingTracer()
    before = tracing.use_tracer(recorder)
    yield recorder
    tracing.use_tracer(before)


def test_spans_nest_below_their_parent(tracer: RecordingTracer) -> None:
    with tracing.span("outer", parent=PARENT, kind="trial"), tracing.span("inner"):
        current = tracing.current()

    inner, outer = tracer.take()
    assert (outer.name, outer.trace_id, outer.parent_id) == ("outer", "ab" * 16, "cd" * 8)
    assert (inner.trace_id, inner.parent_id) == (outer.trace_id, outer.span_id)
    assert current == f"00-{inner.trace_id}-{inner.span_id}-01"
    assert outer.attributes == {"kind": "trial"}
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
    assert tracer.take() == []


def test_a_failure_is_told_and_goes_on(tracer: RecordingTracer) -> None:
    with pytest.raises(ZeroDivisionError), tracing.span("s", parent=PARENT):
        raise ZeroDivisionError("one by zero")

    (span,) = tracer.take()
    assert span.error == "ZeroDivisionError: one by zero"


@pytest.mark.parametrize("parent", ["", "nonsense", f"00-{'0' * 32}-{'cd' * 8}-01"])
def test_without_a_trace_nothing_is_recorded(tracer: RecordingTracer, parent: str) -> None:
    with tracing.span("s", parent=parent):
        assert tracing.current() == ""

    assert tracer.take() == []


async def test_spans_follow_threads_and_stay_apart_between_tasks(tracer: RecordingTracer) -> None:
    async def task(number: int) -> str:
        with tracing.span(f"task {number}", parent=PARENT):
            await asyncio.sleep(0)
            return await asyncio.to_thread(tracing.current)

    seen = await asyncio.gather(task(1), task(2))

    assert {span.span_id for span in tracer.take()} == {text.split("-")[2] for text in seen}
    assert len(set(seen)) == 2


def test_spans_travel_as_plain_data(tracer: RecordingTracer) -> None:
    with tracing.span("s", parent=PARENT, count=3):
        pass
    (span,) = tracer.take()

    tracing.adopt(tracing.as_messages([span]))

    assert tracer.take() == [span]


def test_nobody_listens_by_default() -> None:
    before = tracing.use_tracer(NoTracer())
    with tracing.span("s", parent=PARENT):
        assert tracing.current() == ""
    tracing.adopt([])
    tracing.use_tracer(before)


def test_a_server_without_traces_does_not_load_the_library() -> None:
    code = (
        "import sys, tightfit_service.bootstrap, tightfit; sys.exit('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (PARENT, True),
        (PARENT[:-2] + "00", False),
        (PARENT.upper(), False),
        ("ff" + PARENT[2:], False),
        (PARENT + "-more", False),
        (f"00-{'ab' * 16}-{'0' * 16}-01", False),
        ("", False),
    ],
)
def test_traceparents_are_told_from_other_text(text: str, is_one: bool) -> None:
    assert is_traceparent(text) is is_one
