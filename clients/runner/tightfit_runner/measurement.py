"""Measuring a model on this machine: a process that is watched, and what the device was like meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from tightfit_runner import meters
from tightfit_runner.failures import MeasurementError
from tightfit_runner.fork_server import PROGRAM, ForkServer
from tightfit_runner.meters import Meter, Reading
from tightfit_runner.profilers import OperatorTime
from tightfit_runner.sensors import Sensors, State, was_throttled

POLL_SECONDS = 0.05
IDLE_SECONDS = 0.5
MOST_FORKS = 50
"""Of one process that has a runtime loaded. Where it lies in memory is the same in all of its forks, and some
networks of many small operators take up to half as long again in one such process as in the next."""


@dataclass(frozen=True)
class Order:
    """What is to be measured."""

    path: Path
    format: str
    runtime: str
    threads: int
    timeout_seconds: float
    min_runs: int
    min_seconds: float
    wants_operators: bool = False


@dataclass(frozen=True)
class Result:
    """What was measured; fields as in the contract's Measurement."""

    p50_ms: float
    p90_ms: float
    throughput_per_s: float
    run_count: int
    p10_ms: float = 0.0
    p99_ms: float | None = None
    warm_up_count: int = 0
    settled: bool = False
    noise_ratio: float = 0.0
    model_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    energy_mj: float | None = None
    mean_power_mw: float = 0.0
    idle_power_mw: float | None = None
    energy_source: str = ""
    before: State | None = None
    after: State | None = None
    throttled: bool = False
    runtime: str = ""
    runtime_version: str = ""
    operators: tuple[OperatorTime, ...] = ()
    notes: tuple[str, ...] = field(default=())


class LocalMachine:
    """Measures on the machine that the agent runs on."""

    def __init__(
        self,
        *,
        versions: dict[str, str],
        meter: Meter | None = None,
        sensors: Sensors | None = None,
        program: Path = PROGRAM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what there is.

        Args:
            versions: Of the runtimes, by name.
            meter: For energy, or None.
            sensors: For clock and temperature.
            program: What measures, in a process of its own; tests give another.
            clock: Seconds that never jump.
        """
        self._versions = versions
        self._meter = meter
        self._sensors = sensors or Sensors()
        self._program = program
        self._clock = clock
        self._servers: dict[str, ForkServer] = {}

    def measure(self, order: Order, cancelled: threading.Event) -> Result:
        """Run the model in a process of its own and return what was seen.

        Raises:
            MeasurementError: The runtime does not take the model, or the process died, hung, or was
                cancelled; nothing of it is left.
        """
        idle = self._idle()
        end = self._clock() + order.timeout_seconds
        with _Watched(self._server(order.runtime), _facts(order)) as process:
            self._expect(process, "steady", end, cancelled)
            before = self._sensors.state()
            notes: list[str] = []
            meter = meters.begin(self._meter, notes)
            process.answer()
            try:
                stopped = self._expect(process, "stopped", end, cancelled)
            finally:
                reading = meters.end(meter, notes)
            after = self._sensors.state()
            done = self._expect(process, "done", end, cancelled)
            operators = self._operators(order, process, end, cancelled, notes)
        result = self._result(order, done, stopped, before, after, reading, idle, notes)
        return replace(result, operators=operators)

    def _operators(
        self,
        order: Order,
        process: _Watched,
        end: float,
        cancelled: threading.Event,
        notes: list[str],
    ) -> tuple[OperatorTime, ...]:
        """Return what operators took, or note why the runtime does not tell; the rest was measured before.

        Raises:
            MeasurementError: The order was cancelled.
        """
        if not order.wants_operators:
            return ()
        try:
            report = self._expect(process, "operators", end, cancelled, or_else="no operators")
        except MeasurementError as error:
            if error.kind == "CANCELLED":
                raise
            report = {"event": "no operators", "message": error.message}
        if report["event"] != "operators":
            notes.append(f"what operators take is not known: {report['message']}")
            return ()
        return tuple(OperatorTime(*found) for found in report["operators"])

    def _result(
        self,
        order: Order,
        done: dict[str, Any],
        stopped: dict[str, Any],
        before: State,
        after: State,
        reading: Reading | None,
        idle: Reading | None,
        notes: list[str],
    ) -> Result:
        throttled = was_throttled(before, after)
        if not done["settled"]:
            notes.append(f"the latency did not settle: it moved by {done['noise_ratio']:.0%}")
        if done["run_count"] < order.min_runs:
            notes.append(f"{done['run_count']} runs instead of {order.min_runs} within the time")
        if throttled:
            notes.append("the device lowered its clock while it measured")
        return Result(
            p50_ms=done["p50_ms"],
            p90_ms=done["p90_ms"],
            p10_ms=done["p10_ms"],
            p99_ms=done["p99_ms"],
            throughput_per_s=done["throughput_per_s"],
            run_count=done["run_count"],
            warm_up_count=done["warm_up_count"],
            settled=done["settled"] and not throttled,
            noise_ratio=done["noise_ratio"],
            model_peak_bytes=done["model_peak_bytes"],
            process_peak_bytes=done["process_peak_bytes"],
            # Of the time that the models ran: the meter also saw moments around it.
            energy_mj=(
                None
                if reading is None
                else reading.watts * stopped["seconds"] / stopped["run_count"] * 1e3
            ),
            mean_power_mw=0.0 if reading is None else reading.watts * 1e3,
            idle_power_mw=None if idle is None else idle.watts * 1e3,
            energy_source="" if self._meter is None else self._meter.name,
            before=before,
            after=after,
            throttled=throttled,
            runtime=order.runtime,
            runtime_version=self._versions.get(order.runtime, ""),
            notes=tuple(notes),
        )

    def _server(self, runtime: str) -> ForkServer:
        """Return what starts processes with a runtime, anew if the one that did is gone or has started many."""
        server = self._servers.get(runtime)
        if server is not None and server.fork_count >= MOST_FORKS:
            server.close()
        if server is None or not server.is_alive:
            server = self._servers[runtime] = ForkServer(runtime, self._program)
        return server

    def _expect(
        self,
        process: _Watched,
        event: str,
        end: float,
        cancelled: threading.Event,
        *,
        or_else: str = "",
    ) -> dict[str, Any]:
        """Return the next report, which must be of that kind, or of the other where there is one."""
        while True:
            if cancelled.is_set():
                raise MeasurementError("CANCELLED", "the server took the order back")
            if self._clock() >= end:
                raise MeasurementError("TIMED_OUT", f"no {event} report in time; it was killed")
            report = process.next_report()
            if report is None:
                continue
            if report["event"] == "failed":
                raise MeasurementError(report["kind"], report["message"])
            if report["event"] not in (event, or_else):
                raise MeasurementError("INTERNAL", f"{report['event']} came before {event}")
            return report

    def _idle(self) -> Reading | None:
        """Return what the device draws while nothing runs."""
        unheard: list[str] = []
        meter = meters.begin(self._meter, unheard)
        if meter is None:
            return None
        time.sleep(IDLE_SECONDS)
        return meters.end(meter, unheard)


def _facts(order: Order) -> str:
    """Return an order as the process reads it."""
    facts = {
        "path": str(order.path),
        "runtime": order.runtime,
        "threads": order.threads,
        "timeout_seconds": order.timeout_seconds,
        "min_runs": order.min_runs,
        "min_seconds": order.min_seconds,
        "wants_operators": order.wants_operators,
    }
    return json.dumps(facts)


class _Watched:
    """A process whose reports are read without waiting, and which leaves nothing behind."""

    def __init__(self, server: ForkServer, order: str) -> None:
        self._server = server
        self._order = order
        self._reports: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._status: int | None = None

    def __enter__(self) -> _Watched:  # noqa: PYI034  # typing.Self came with Python 3.11
        self._errors = tempfile.TemporaryFile()
        try:
            # a process group of its own, so that what the runtime starts goes with it
            self._process = self._server.fork(self._order, self._errors)
        except MeasurementError:
            self._errors.close()
            raise
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._status is None:
            self._status = self._server.wait()
        self._server.let_go()
        with contextlib.suppress(OSError):
            self._process.answers.close()
        self._errors.close()

    def answer(self) -> None:
        """Let the process go on."""
        with contextlib.suppress(OSError):
            self._process.answers.write("go\n")
            self._process.answers.flush()

    def next_report(self) -> dict[str, Any] | None:
        """Return a report, or None when there is none yet.

        Raises:
            MeasurementError: The process ended without one.
        """
        try:
            report = self._reports.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return None
        if report is None:
            raise self._death()
        return report

    def _read(self) -> None:
        for line in self._process.reports:
            try:
                report = json.loads(line)
            except ValueError:
                continue  # a library that writes to the file descriptor itself
            if isinstance(report, dict) and "event" in report:
                self._reports.put(report)
        self._reports.put(None)
        self._process.reports.close()

    def _death(self) -> MeasurementError:
        status = self._status = self._server.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 1_000))
        words = self._errors.read().decode(errors="replace").strip()
        if status == -signal.SIGKILL:
            return MeasurementError(
                "OUT_OF_MEMORY", "killed from outside, most often for its memory"
            )
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return MeasurementError("CRASHED", f"{name}; {words}" if words else name)
