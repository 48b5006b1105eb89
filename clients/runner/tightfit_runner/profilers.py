"""What each operator of a model takes, as far as its runtime tells.

Profilers of both runtimes count whole microseconds, cut off; half of one is added. Runs that were
disturbed do not count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

from tightfit_runner import litert_profiler, runtimes

LEAST_RUNS = 30
MOST_RUNS = 500
ENOUGH_SECONDS = 0.1
HALF_TICK_MS = 5e-4


@dataclass(frozen=True)
class OperatorTime:
    """What one operator took; fields as in the contract."""

    kind: str
    latency_ms: float
    output_elements: int = 0


@dataclass(frozen=True)
class Event:
    """One operator in one run: its kind, whole microseconds, and elements of its output or 0."""

    kind: str
    micros: int
    output_elements: int = 0


def operator_times(
    runtime: str, path: Path, threads: int, *, most_seconds: float
) -> list[OperatorTime]:
    """Return what the operators of a model take, in the order in which the runtime runs them.

    Raises:
        ValueError: The runtime has no profiler.
        Exception: What the runtime raises for files that it does not take.
    """
    if runtime == "litert":
        return _undisturbed(_litert_runs(path, threads, most_seconds))
    if runtime == "onnxruntime":
        return _undisturbed(_onnxruntime_runs(path, threads, most_seconds))
    raise ValueError(f"{runtime!r} has no profiler")


def _undisturbed(runs: Sequence[Sequence[Event]]) -> list[OperatorTime]:
    """Return means over the faster half of the runs."""
    first = runs[0]
    alike = [run for run in runs if [e.kind for e in run] == [e.kind for e in first]]
    micros = np.array([[event.micros for event in run] for run in alike], dtype=np.float64)
    totals = micros.sum(axis=1)
    means = micros[totals <= np.median(totals)].mean(axis=0)
    return [
        OperatorTime(event.kind, float(mean) / 1e3 + HALF_TICK_MS, event.output_elements)
        for event, mean in zip(first, means)
    ]


def _repeated(run: Callable[[], object], most_seconds: float) -> int:
    """Run until there are enough runs; return how many."""
    begin, count = time.monotonic(), 0
    while count < MOST_RUNS:
        run()
        count += 1
        seconds = time.monotonic() - begin
        if seconds > most_seconds or (count >= LEAST_RUNS and seconds > ENOUGH_SECONDS):
            break
    return count


def _litert_runs(path: Path, threads: int, most_seconds: float) -> list[list[Event]]:
    runs: list[list[Event]] = []
    with litert_profiler.opened(path, threads) as profiled:
        profiled.run()

        def run() -> None:
            profiled.run()
            runs.append([Event(kind, micros) for kind, micros in profiled.events()])

        _repeated(run, most_seconds)
    return runs


def _onnxruntime_runs(path: Path, threads: int, most_seconds: float) -> list[list[Event]]:
    import onnxruntime

    options = runtimes.onnxruntime_options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(".profile"))
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    feeds = runtimes.onnxruntime_feeds(session)
    count = _repeated(lambda: session.run(None, feeds), most_seconds)
    found = Path(session.end_profiling())
    events = [
        Event(item["args"]["op_name"], int(item["dur"]), _elements(item["args"]))
        for item in json.loads(found.read_text())
        if item.get("cat") == "Node" and item["name"].endswith("_kernel_time")
    ]
    found.unlink()
    # the profile breaks off where its buffer is full
    size, rest = divmod(len(events), count)
    if rest or not size:
        raise ValueError(f"{len(events)} events of {count} runs")
    # the first run makes what the others find
    return [events[start : start + size] for start in range(size, len(events), size)] or [events]


def _elements(args: dict[str, Any]) -> int:
    shapes = [shape for entry in args.get("output_type_shape", ())[:1] for shape in entry.values()]
    return int(np.prod(shapes[0], dtype=np.int64)) if shapes else 0
