"""Power meters against sensors made of files, a command, and a kit in memory."""

from __future__ import annotations

import itertools
import sys
import threading
from pathlib import Path

import pytest

from tightfit_runner.meters import (
    CommandMeter,
    Ppk2Meter,
    RaplMeter,
    SamplingMeter,
    find_meter,
    hwmon_meter,
)


def put(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text + "\n")
    return root


def test_rapl_counts_over_its_overflow(tmp_path: Path) -> None:
    domain = put(tmp_path, name="package-0", energy_uj="900000", max_energy_range_uj="1000000")
    times = iter([10.0, 14.0])
    meter = RaplMeter(domain, clock=lambda: next(times))
    meter.start()
    put(domain, energy_uj="100000")

    reading = meter.stop()
    assert reading.joules == pytest.approx(0.2)
    assert reading.seconds == 4.0
    assert reading.watts == pytest.approx(0.05)
    assert meter.name == "rapl:package-0"


def test_samples_are_integrated() -> None:
    # A ramp of 1 W per second, read at every second: its integral is exact by trapezoids.
    ticks = itertools.count()
    enough = threading.Event()

    def clock() -> float:
        tick = next(ticks)
        if tick >= 5:
            enough.set()
        return float(tick)

    seen: list[float] = []

    def watts() -> float:
        seen.append(float(len(seen)))
        return seen[-1]

    meter = SamplingMeter("a sensor", watts, clock=clock)
    meter.start()
    assert enough.wait(10)
    reading = meter.stop()

    assert reading.seconds >= 5
    assert reading.joules == pytest.approx(reading.seconds**2 / 2)


def test_a_sensor_that_fails_meanwhile_is_an_error_and_not_a_number() -> None:
    readings = iter([1.0])

    def watts() -> float:
        try:
            return next(readings)
        except StopIteration:
            raise OSError("gone") from None

    meter = SamplingMeter("a sensor", watts)
    meter.start()
    with pytest.raises(OSError, match="gone"):
        meter.stop()


def test_a_jetson_is_measured_at_the_rail_that_feeds_it(tmp_path: Path) -> None:
    hwmon = put(
        tmp_path,
        name="ina3221",
        in1_label="VDD_CPU",
        in1_input="5000",
        curr1_input="100",
        in2_label="VDD_IN",
        in2_input="5000",
        curr2_input="2000",
    )
    meter = hwmon_meter(hwmon)
    assert isinstance(meter, SamplingMeter)
    assert meter.name == "hwmon:VDD_IN"
    assert meter._read_watts() == pytest.approx(10.0)


def test_an_ina226_tells_its_power(tmp_path: Path) -> None:
    hwmon = put(tmp_path, name="ina226", curr1_input="2000", power1_input="7500000")
    meter = hwmon_meter(hwmon)
    assert isinstance(meter, SamplingMeter)
    assert (meter.name, meter._read_watts()) == ("hwmon:ina226", 7.5)


def test_the_boards_rail_goes_before_the_packages_counter(tmp_path: Path) -> None:
    assert find_meter(tmp_path) is None
    put(tmp_path / "class/powercap/intel-rapl:0", name="package-0", energy_uj="1")
    put(tmp_path / "class/powercap/intel-rapl:0:0", name="core", energy_uj="1")
    put(tmp_path / "class/hwmon/hwmon0", name="coretemp", temp1_input="1")
    found = find_meter(tmp_path)
    assert isinstance(found, RaplMeter)
    assert found.name == "rapl:package-0"
    put(tmp_path / "class/hwmon/hwmon1", name="ina226", power1_input="1", curr1_input="1")
    assert isinstance(find_meter(tmp_path), SamplingMeter)


def test_a_command_says_joules_when_it_is_interrupted(tmp_path: Path) -> None:
    script = tmp_path / "meter.py"
    ready = tmp_path / "ready"
    script.write_text(
        "import pathlib, signal, sys\n"
        "def end(*_):\n    print('log line\\n12.5')\n    sys.exit()\n"
        "signal.signal(signal.SIGINT, end)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "while True: signal.pause()\n"
    )
    meter = CommandMeter(f"{sys.executable} {script}")
    meter.start()
    for _ in range(1_000):
        if ready.exists():
            break
        threading.Event().wait(0.01)

    assert meter.stop().joules == 12.5


class Kit:
    """The part of PPK2_API that is used."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.packets = [b"x", b"y"]

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: self.calls.append(" ".join([name, *map(str, arguments)]))

    def get_data(self) -> bytes:
        return self.packets.pop() if self.packets else b""

    def get_samples(self, data: bytes) -> tuple[list[float], int]:
        return ([1_000.0, 3_000.0] if data == b"x" else [2_000.0]), 0


def test_a_power_profiler_gives_mean_current_times_voltage() -> None:
    kit = Kit()
    meter = Ppk2Meter("/dev/null", 3.0, is_source=True, kit=kit)
    meter.start()
    while kit.packets:
        threading.Event().wait(0.001)
    reading = meter.stop()

    assert reading.watts == pytest.approx(2e-3 * 3.0)
    assert kit.calls == [
        "get_modifiers",
        "set_source_voltage 3000",
        "use_source_meter",
        "toggle_DUT_power ON",
        "start_measuring",
        "stop_measuring",
    ]
    empty = Ppk2Meter("/dev/null", 3.0, is_source=False, kit=kit)
    empty.start()
    with pytest.raises(ValueError, match="no samples"):
        empty.stop()
