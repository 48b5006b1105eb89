"""Measuring on a microcontroller board behind a serial port, which is flashed by a command."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np

from tightfit_runner import meters, steadiness
from tightfit_runner.device import Device
from tightfit_runner.failures import MeasurementError
from tightfit_runner.measurement import Order, Result
from tightfit_runner.meters import Meter
from tightfit_runner.serial_protocol import BoardConnection, Port, open_port

WINDOWS = 5
"""Medians over five windows, as the rules of MLPerf Tiny have it."""
ANSWER_SECONDS = 5.0
SLACK = 4.0
"""By which a window may take longer than the first inference said."""


@dataclass(frozen=True)
class BoardSettings:
    """A board as the configuration file describes it."""

    device: Device
    port: str
    baud: int = 115_200
    flash_command: str = ""
    """Run for every model, with `{model}` for its file; empty when the board runs one model only."""
    flash_timeout_seconds: float = 300.0
    boot_seconds: float = 30.0


class SerialBoard:
    """Flashes models onto a board and times them there."""

    def __init__(
        self,
        settings: BoardSettings,
        *,
        meter: Meter | None = None,
        connect: Callable[[str, int], Port] = open_port,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._meter = meter
        self._connect = connect
        self._clock = clock

    def measure(self, order: Order, cancelled: threading.Event) -> Result:
        """Flash the model and time it in windows.

        Raises:
            MeasurementError: The flash command fails, or the board does not answer, refuses, or is cancelled.
        """
        end = self._clock() + order.timeout_seconds
        self._flash(order, end, cancelled)
        connection = BoardConnection(
            self._connect(self._settings.port, self._settings.baud), clock=self._clock
        )
        with contextlib.closing(connection):
            left = self._left(end)
            connection.wait_until_ready(min(self._settings.boot_seconds, left), cancelled)
            board = connection.identify(ANSWER_SECONDS, cancelled)
            first_ms = connection.infer(1, 1, self._left(end), cancelled)
            if first_ms <= 0:
                raise MeasurementError("INTERNAL", "the board's clock stands still")
            count = max(
                1,
                math.ceil(order.min_runs / WINDOWS),
                math.ceil(order.min_seconds * 1e3 / WINDOWS / first_ms),
            )
            result = self._windows(connection, count, first_ms, end, cancelled)
        return replace(
            result,
            runtime=order.runtime,
            notes=(
                *result.notes,
                f"board {board.name}, firmware {board.firmware}, model {board.model}",
            ),
        )

    def _windows(
        self,
        connection: BoardConnection,
        count: int,
        first_ms: float,
        end: float,
        cancelled: threading.Event,
    ) -> Result:
        latencies: list[float] = []
        joules = seconds = 0.0
        notes: list[str] = []
        meter = self._meter
        for _ in range(WINDOWS):
            timeout = min(self._left(end), ANSWER_SECONDS + SLACK * count * first_ms / 1e3)
            meter = meters.begin(meter, notes)
            try:
                latencies.append(connection.infer(count, 0, timeout, cancelled))
            finally:
                reading = meters.end(meter, notes)
            if reading is None:
                meter = None
            else:
                joules, seconds = joules + reading.joules, seconds + reading.seconds
        noise = steadiness.spread(latencies)
        p10, p50, p90 = (
            float(value) for value in np.percentile(latencies, (steadiness.UNDISTURBED, 50, 90))
        )
        watts = joules / seconds if meter is not None and seconds else None
        return Result(
            p50_ms=p50,
            p90_ms=p90,
            p10_ms=p10,
            throughput_per_s=1e3 / (sum(latencies) / len(latencies)),
            run_count=count * WINDOWS,
            warm_up_count=1,
            settled=noise <= steadiness.SETTLED_RATIO,
            noise_ratio=noise,
            energy_mj=None if watts is None else watts * p50,
            mean_power_mw=0.0 if watts is None else watts * 1e3,
            energy_source="" if self._meter is None else self._meter.name,
            notes=(f"percentiles over the means of {WINDOWS} windows of {count} runs", *notes),
        )

    def _flash(self, order: Order, end: float, cancelled: threading.Event) -> None:
        if not self._settings.flash_command:
            return
        words = [
            word.replace("{model}", str(order.path))
            for word in shlex.split(self._settings.flash_command)
        ]
        end = min(end, self._clock() + self._settings.flash_timeout_seconds)
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    words, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise MeasurementError("DEVICE_LOST", f"flash command: {error}") from error
            try:
                while process.poll() is None:
                    if cancelled.wait(0.05):
                        raise MeasurementError("CANCELLED", "the server took the order back")
                    if self._clock() >= end:
                        raise MeasurementError(
                            "DEVICE_LOST", "the flash command did not end in time"
                        )
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.returncode:
                output.seek(max(0, output.seek(0, os.SEEK_END) - 1_000))
                output_tail = output.read().decode(errors="replace").strip()
                raise MeasurementError(
                    "UNSUPPORTED_MODEL",
                    f"the flash command ended with {process.returncode}: {output_tail}",
                )

    def _left(self, end: float) -> float:
        left = end - self._clock()
        if left <= 0:
            raise MeasurementError("TIMED_OUT", "the board took longer than the order allows")
        return left
