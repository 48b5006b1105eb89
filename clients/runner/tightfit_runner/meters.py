"""Power meters: whichever a device has, behind start, stop and a name."""

from __future__ import annotations

import math
import re
import shlex
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Protocol

from tightfit_runner.failures import SettingsError

SAMPLE_SECONDS = 0.01
"""Between two readings of a power."""
COMMAND_SECONDS = 10.0
"""For which a command that was interrupted may take to end."""
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "SYS5V", "VSYS")
"""Labels of the rail that feeds the whole board, on Jetson modules and others with INA sensors."""


@dataclass(frozen=True)
class Reading:
    """Energy over a time."""

    joules: float
    seconds: float

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds if self.seconds > 0 else 0.0


class Meter(Protocol):
    """Measures what a device draws between two calls."""

    name: str
    """The sensor and what it counts, such as `rapl:package-0`."""

    def start(self) -> None:
        """Begin to count."""

    def stop(self) -> Reading:
        """Return what was counted. Raises OSError or ValueError when the sensor failed meanwhile."""


def begin(meter: Meter | None, notes: list[str]) -> Meter | None:
    """Start a meter and return it; where that fails it is noted, and there is none."""
    if meter is None:
        return None
    try:
        meter.start()
    except (OSError, ValueError) as error:
        notes.append(f"no energy: {error}")
        return None
    return meter


def end(meter: Meter | None, notes: list[str]) -> Reading | None:
    """Stop a meter and return what it counted; where that cannot be an energy it is noted."""
    if meter is None:
        return None
    try:
        reading = meter.stop()
    except (OSError, ValueError) as error:
        notes.append(f"no energy: {error}")
        return None
    # counters stand still in virtual machines; the server takes such a figure for a lie
    if not (math.isfinite(reading.watts) and reading.watts > 0):
        notes.append(f"no energy: {meter.name} counted {reading.joules:g} J")
        return None
    return reading


class RaplMeter:
    """Intel's and AMD's energy counters (Linux, Documentation/power/powercap/powercap.rst)."""

    def __init__(self, domain: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._domain = domain
        self._clock = clock
        self.name = f"rapl:{(domain / 'name').read_text().strip()}"
        self._begin = (0, 0.0)

    def start(self) -> None:
        """Begin to count."""
        self._begin = (self._count(), self._clock())

    def stop(self) -> Reading:
        """Return the difference of the counters, over at most one overflow."""
        microjoules = self._count() - self._begin[0]
        if microjoules < 0:
            microjoules += int((self._domain / "max_energy_range_uj").read_text())
        return Reading(microjoules / 1e6, self._clock() - self._begin[1])

    def _count(self) -> int:
        return int((self._domain / "energy_uj").read_text())


class SamplingMeter:
    """Integrates readings of a power, by trapezoids."""

    def __init__(
        self,
        name: str,
        read_watts: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._read_watts = read_watts
        self._clock = clock
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sample."""
        self._samples = [self._sample()]
        self._stop.clear()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def stop(self) -> Reading:
        """Return the integral."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        self._samples.append(self._sample())
        pairs = list(zip(self._samples, self._samples[1:]))
        joules = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)
        return Reading(joules, self._samples[-1][0] - self._samples[0][0])

    def _go_on(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            try:
                self._samples.append(self._sample())
            except (OSError, ValueError):
                return  # the last sample of `stop` says so

    def _sample(self) -> tuple[float, float]:
        watts = self._read_watts()
        return self._clock(), watts


class CommandMeter:
    """An external command that runs while the model does and ends at SIGINT, with joules on its last line."""

    def __init__(self, command: str) -> None:
        self._command = shlex.split(command)
        self.name = f"command:{Path(self._command[0]).name}"
        self._process: subprocess.Popen[str] | None = None
        self._begin = 0.0

    def start(self) -> None:
        """Start the command."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._begin = time.monotonic()

    def stop(self) -> Reading:
        """Interrupt the command and read its last line."""
        assert self._process is not None
        seconds = time.monotonic() - self._begin
        self._process.send_signal(signal.SIGINT)
        try:
            output, _ = self._process.communicate(timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.communicate()
            raise ValueError(f"{self.name} did not end at SIGINT") from error
        lines = output.split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return Reading(float(last), seconds)


class Ppk2Meter:
    """Nordic's Power Profiler Kit II through `ppk2-api`; its samples are microamperes at 100 kHz."""

    def __init__(self, port: str, supply_v: float, *, is_source: bool, kit: Any = None) -> None:
        if kit is None:
            try:
                from ppk2_api.ppk2_api import PPK2_API
            except ImportError as error:
                raise SettingsError(
                    "the meter ppk2 needs ppk2-api: pip install 'tightfit-runner[ppk2]'"
                ) from error
            kit = PPK2_API(port, timeout=1, write_timeout=1)
        self.name = f"ppk2:{'source' if is_source else 'ampere'}"
        self._kit = kit
        self._supply_v = supply_v
        kit.get_modifiers()
        kit.set_source_voltage(round(supply_v * 1e3))
        if is_source:
            kit.use_source_meter()
            kit.toggle_DUT_power("ON")
        else:
            kit.use_ampere_meter()
        self._sampled = (0.0, 0)
        self._begin = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to sample."""
        self._sampled = (0.0, 0)
        self._stop.clear()
        self._kit.start_measuring()
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def stop(self) -> Reading:
        """Return mean current times voltage times time."""
        seconds = time.monotonic() - self._begin
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        self._kit.stop_measuring()
        total, count = self._sampled
        if not count:
            raise ValueError("the PPK2 sent no samples")
        return Reading(total / count * 1e-6 * self._supply_v * seconds, seconds)

    def _go_on(self) -> None:
        while not self._stop.is_set():
            data = self._kit.get_data()
            if data:
                samples, *_ = self._kit.get_samples(data)
                total, count = self._sampled
                self._sampled = (total + sum(samples), count + len(samples))
            else:
                time.sleep(SAMPLE_SECONDS / 10)


def find_meter(sys_root: Path = Path("/sys")) -> Meter | None:
    """Return the meter that this device has: the rail that feeds the board before the package's counter."""
    for hwmon in sorted((sys_root / "class/hwmon").glob("hwmon*")):
        meter = hwmon_meter(hwmon)
        if meter is not None:
            return meter
    for domain in sorted((sys_root / "class/powercap").glob("intel-rapl:*")):
        name = domain / "name"
        if (
            re.fullmatch(r"intel-rapl:\d+", domain.name)
            and name.is_file()
            and _readable(domain / "energy_uj")
        ):
            return RaplMeter(domain)
    return None


def hwmon_meter(hwmon: Path) -> Meter | None:
    """Return a meter over a power sensor of hwmon, such as INA226 or a Jetson's INA3221, or None.

    Units are those of Linux, Documentation/hwmon/sysfs-interface.rst: microwatts, millivolts, milliamperes.
    """
    chip = _label(hwmon / "name")
    if not re.match(r"ina\d|.*ina3221", chip):
        return None
    channels = {path.name[4:-6]: path for path in sorted(hwmon.glob("curr*_input"))}
    labels = {channel: _label(hwmon / f"in{channel}_label") for channel in channels}
    channel = next(
        (c for c, label in labels.items() if label in _TOTAL_RAILS), next(iter(channels), "1")
    )
    name = f"hwmon:{labels.get(channel) or chip}"
    power = hwmon / f"power{channel}_input"
    if _readable(power):
        return SamplingMeter(name, lambda: _value(power) / 1e6)
    volts, amperes = hwmon / f"in{channel}_input", hwmon / f"curr{channel}_input"
    if _readable(volts) and _readable(amperes):
        return SamplingMeter(name, lambda: _value(volts) * _value(amperes) / 1e6)
    return None


def _value(path: Path) -> float:
    return float(path.read_text())


def _label(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _readable(path: Path) -> bool:
    try:
        _value(path)
    except (OSError, ValueError):
        return False
    return True
