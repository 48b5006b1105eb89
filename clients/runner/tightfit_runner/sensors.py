"""What a Linux device tells of itself while it works: clock, temperature, throttling."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PLAUSIBLE_TEMPERATURE_C = (-40.0, 150.0)
SLOWED_RATIO = 0.9
"""A clock below this share of what it was is a lowered one; governors step by less."""
_PI_THROTTLED = "devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW_BITS = 0xF
"""Under-voltage, frequency capped, throttled, soft temperature limit: all of them now
(Raspberry Pi documentation, vcgencmd get_throttled)."""


@dataclass(frozen=True)
class State:
    """How the device is at a moment; None where it does not tell."""

    clock_mhz: float | None
    temperature_c: float | None
    throttle_count: int
    is_capped: bool


class Sensors:
    """Reads /sys and /proc, or what a test puts in their place."""

    def __init__(self, sys_root: Path = Path("/sys"), proc_root: Path = Path("/proc")) -> None:
        self._sys = sys_root
        self._proc = proc_root

    def state(self) -> State:
        """Return how the device is now."""
        cpu = self._sys / "devices/system/cpu"
        counts = _numbers(cpu.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        flags = _text(self._sys / _PI_THROTTLED)
        return State(
            clock_mhz=self.clock_mhz(),
            temperature_c=self._temperature_c(),
            throttle_count=int(sum(counts)),
            is_capped=bool(int(flags, 16) & _PI_NOW_BITS) if flags else False,
        )

    def clock_mhz(self) -> float | None:
        """Return the mean clock of the cores."""
        cpu = self._sys / "devices/system/cpu"
        clocks = _numbers(cpu.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if clocks:
            return sum(clocks) / len(clocks) / 1e3
        found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(self._proc / "cpuinfo"), re.MULTILINE)
        return sum(map(float, found)) / len(found) if found else None

    def highest_clock_mhz(self) -> float | None:
        """Return the highest clock that any core may have, or the present one where none is told."""
        cpu = self._sys / "devices/system/cpu"
        clocks = _numbers(cpu.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq"))
        return max(clocks) / 1e3 if clocks else self.clock_mhz()

    def names(self) -> tuple[str, ...]:
        """Return what can be sensed."""
        state = self.state()
        found = (
            ("frequency", state.clock_mhz is not None),
            ("temperature", state.temperature_c is not None),
        )
        return tuple(name for name, is_there in found if is_there)

    def _temperature_c(self) -> float | None:
        thermal = _numbers((self._sys / "class/thermal").glob("thermal_zone*/temp"))
        hwmon = _numbers((self._sys / "class/hwmon").glob("hwmon*/temp*_input"))
        low, high = PLAUSIBLE_TEMPERATURE_C
        found = [value / 1e3 for value in (*thermal, *hwmon) if low < value / 1e3 < high]
        return max(found, default=None)


def was_throttled(before: State, after: State) -> bool:
    """Whether the device lowered its clock between two moments under the same load."""
    is_slower = (
        before.clock_mhz is not None
        and after.clock_mhz is not None
        and after.clock_mhz < SLOWED_RATIO * before.clock_mhz
    )
    return is_slower or after.is_capped or after.throttle_count > before.throttle_count


def _numbers(paths: Iterable[Path]) -> list[float]:
    found = []
    for path in paths:
        text = _text(path)
        try:
            found.append(float(text))
        except ValueError:
            continue
    return found


def _text(path: Path) -> str:
    # Sensors may be absent, switched off, or fail to answer.
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
