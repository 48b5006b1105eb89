"""The serial protocol of MLPerf Tiny and EEMBC: commands that end in `%`, answers that end in `m-ready`.

Source: mlcommons/tiny, benchmark/api/internally_implemented.cpp.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Protocol

from tightfit_runner.failures import MeasurementError, SettingsError

READY = "m-ready"
TIMESTAMP = re.compile(r"^m-lap-us-(\d+)$")
ERROR = re.compile(r"^e-\[(.*)\]$")
COUNTER_MODULUS = 2**32
"""Firmware prints microseconds as 32 bits."""
MAX_LINE_BYTES = 1 << 20


class Port(Protocol):
    """The part of pyserial's `Serial` that is used. Reads return what came within the port's time-out."""

    def write(self, data: bytes) -> Any:
        """Send bytes."""

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none when nothing came."""

    def reset_input_buffer(self) -> Any:
        """Forget what came."""

    def close(self) -> Any:
        """Close the port."""


@dataclass(frozen=True)
class Board:
    """What a board answers to `name` and `profile`."""

    name: str
    firmware: str
    model: str


def open_port(device: str, baud: int) -> Port:
    """Open a serial port.

    Raises:
        SettingsError: pyserial is not installed.
        MeasurementError: Of kind DEVICE_LOST: the port is not there.
    """
    try:
        import serial
    except ImportError as error:
        raise SettingsError(
            "a board needs pyserial: pip install 'tightfit-runner[board]'"
        ) from error
    try:
        port: Port = serial.Serial(device, baud, timeout=0.1, write_timeout=5)
    except (OSError, ValueError) as error:
        raise MeasurementError("DEVICE_LOST", f"{device}: {error}") from error
    return port


class BoardConnection:
    """Speaks to one board. Not safe for several threads."""

    def __init__(self, port: Port, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._clock = clock
        self._pending = b""

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def wait_until_ready(self, timeout_seconds: float, cancelled: threading.Event) -> None:
        """Return once the board answers `name`; it may still be booting, or have booted long ago."""
        end = self._clock() + timeout_seconds
        while True:
            left = end - self._clock()
            try:
                self.ask("name", max(0.1, min(1.0, left)), cancelled)
            except MeasurementError as error:
                if error.kind != "DEVICE_LOST" or self._clock() >= end:
                    raise
            else:
                return

    def identify(self, timeout_seconds: float, cancelled: threading.Event) -> Board:
        """Return what the board says that it is and runs."""
        lines = self.ask("name", timeout_seconds, cancelled)
        lines += self.ask("profile", timeout_seconds, cancelled)

        def after(prefix: str) -> str:
            return next(
                (line[len(prefix) :].strip("[]") for line in lines if line.startswith(prefix)), ""
            )

        return Board(after("m-name-"), after("m-profile-"), after("m-model-"))

    def infer(
        self, count: int, warm_up: int, timeout_seconds: float, cancelled: threading.Event
    ) -> float:
        """Run the model so many times and return the mean time of one inference, in milliseconds.

        Raises:
            MeasurementError: The board does not answer, refuses, or tells no time.
        """
        lines = self.ask(f"infer {count} {warm_up}", timeout_seconds, cancelled)
        stamps = [int(found[1]) for found in map(TIMESTAMP.match, lines) if found]
        if len(stamps) != 2:
            raise MeasurementError(
                "INTERNAL",
                f"the board told {len(stamps)} times instead of 2: is it in energy mode? {lines[-3:]}",
            )
        return (stamps[1] - stamps[0]) % COUNTER_MODULUS / 1e3 / count

    def ask(self, command: str, timeout_seconds: float, cancelled: threading.Event) -> list[str]:
        """Send a command and return the lines of its answer without the last.

        Raises:
            MeasurementError: DEVICE_LOST when no answer comes in time or the port breaks; CANCELLED;
                UNSUPPORTED_MODEL when the board answers with an error.
        """
        lines: list[str] = []
        try:
            self._port.reset_input_buffer()
            self._pending = b""
            self._port.write(f"{command}%".encode())
            end = self._clock() + timeout_seconds
            while READY not in lines:
                if cancelled.is_set():
                    raise MeasurementError("CANCELLED", "the server took the order back")
                if self._clock() >= end:
                    raise MeasurementError(
                        "DEVICE_LOST", f"no answer to {command!r} in {timeout_seconds:g} s"
                    )
                lines += self._lines()
        except OSError as error:
            raise MeasurementError("DEVICE_LOST", f"the port broke: {error}") from error
        answer = lines[: lines.index(READY)]
        for line in answer:
            refusal = ERROR.match(line)
            if refusal:
                raise MeasurementError("UNSUPPORTED_MODEL", f"{command}: {refusal[1]}")
        return answer

    def _lines(self) -> list[str]:
        self._pending += self._port.read(4096)
        if len(self._pending) > MAX_LINE_BYTES:
            raise MeasurementError("DEVICE_LOST", "the board sends without ever ending a line")
        *whole, self._pending = self._pending.split(b"\n")
        return [line.decode(errors="replace").strip() for line in whole]
