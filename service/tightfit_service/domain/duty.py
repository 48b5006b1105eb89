"""What a network costs when it runs at a frame rate: duty cycle, mean power, battery life."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tightfit_service.domain.cost import CostEstimate
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec
from tightfit_service.domain.quantities import Interval

MAX_FRAMES_PER_SECOND = 1e6
ASSUMED_REST_MW = (
    # Microcontrollers in a stop mode that keeps RAM: 2 to 200 microamperes (data sheets of STM32L4, U5, H7,
    # nRF52). Boards with Linux do not sleep between frames: 0.5 to 4 W (Raspberry Pi, Jetson).
    ("cortex-m", Interval(value=0.06, low=0.006, high=0.6)),
    ("xtensa", Interval(value=2.0, low=0.5, high=5.0)),
    ("riscv32", Interval(value=1.0, low=0.3, high=4.0)),
    ("", Interval(value=1_500.0, low=500.0, high=4_000.0)),
)
"""Milliwatts between inferences of targets that state none, by the start of their core class."""
KNOWN_REST = (0.8, 1.25)
"""A stated power is that of one board at one temperature."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How a network is used.

    Attributes:
        frames_per_second: Inferences per second.
        battery_mah: Charge of the battery in milliampere-hours; 0 for none.
        battery_v: Its mean voltage.
    """

    frames_per_second: float
    battery_mah: float = 0.0
    battery_v: float = 0.0

    def __post_init__(self) -> None:
        """Refuse figures that cannot be.

        Raises:
            InvalidRequestError: No frame rate, a figure out of range, or half a battery.
        """
        if not 0 < self.frames_per_second <= MAX_FRAMES_PER_SECOND:
            raise InvalidRequestError(
                f"{self.frames_per_second:g} frames per second is not a frame rate",
                field="usage.frames_per_second",
                remedy=f"give a number above 0 and at most {MAX_FRAMES_PER_SECOND:g}",
            )
        for name, value, most in (
            ("battery_mah", self.battery_mah, 1e9),
            ("battery_v", self.battery_v, 1e3),
        ):
            if not (0 <= value <= most):
                raise InvalidRequestError(
                    f"{name} is {value:g}",
                    field=f"usage.{name}",
                    remedy=f"give a number above 0 and at most {most:g}",
                )
        if (self.battery_mah > 0) != (self.battery_v > 0):
            missing = "battery_v" if self.battery_mah else "battery_mah"
            raise InvalidRequestError(
                f"a battery needs its charge and its voltage; {missing} is not given",
                field=f"usage.{missing}",
                remedy="give both, such as 220 mAh and 3 V for a CR2032",
            )


@dataclass(frozen=True, kw_only=True)
class DutyCycle:
    """Figures derived from an estimate at a frame rate.

    Attributes:
        duty: Share of the time that inference takes; above 1 the device cannot keep up.
        mean_power_mw: Milliwatts over inference and rest.
        battery_hours: Life of the battery, without self-discharge; None without one.
        notes: What is assumed, one sentence each.
    """

    duty: Interval
    mean_power_mw: Interval
    battery_hours: Interval | None
    notes: tuple[str, ...]


def duty_cycle(cost: CostEstimate, target: HardwareSpec, usage: Usage) -> DutyCycle:
    """Return the duty cycle of a network at a frame rate, at most as many frames as the device manages.

    The energy of the frames adds up; the rest of the time the target draws its sleep or idle power.
    Ends of the intervals combine the ends of what they are derived from.
    """
    duty = cost.latency_ms.scaled(usage.frames_per_second / 1e3)
    rest, notes = _rest_mw(target)
    if duty.value > 1:
        notes.append(
            f"{usage.frames_per_second:g} frames per second are more than the target manages: about "
            f"{1e3 / cost.latency_ms.value:.3g}; the power is that of as many as it does"
        )
    elif duty.high > 1:
        notes.append("the target may not keep up: the upper end of the latency is above the period")
    ends = [
        _mean_mw(energy, latency, resting, usage.frames_per_second)
        for energy, latency, resting in (
            (cost.energy_mj.value, cost.latency_ms.value, rest.value),
            (cost.energy_mj.low, cost.latency_ms.low, rest.low),
            (cost.energy_mj.high, cost.latency_ms.high, rest.high),
        )
    ]
    power = Interval(value=ends[0], low=min(ends), high=max(ends))
    hours = None
    if usage.battery_mah:
        stored_mwh = usage.battery_mah * usage.battery_v
        hours = Interval(
            value=stored_mwh / power.value,
            low=stored_mwh / power.high,
            high=stored_mwh / power.low,
        )
    return DutyCycle(duty=duty, mean_power_mw=power, battery_hours=hours, notes=tuple(notes))


def _mean_mw(energy_mj: float, latency_ms: float, rest_mw: float, rate: float) -> float:
    frames = min(rate, 1e3 / latency_ms) if latency_ms > 0 else rate
    return energy_mj * frames + rest_mw * max(1 - frames * latency_ms / 1e3, 0.0)


def _rest_mw(target: HardwareSpec) -> tuple[Interval, list[str]]:
    power = target.power
    stated = power.sleep_mw if power.sleep_mw is not None else power.idle_mw
    if stated is not None and math.isfinite(stated):
        low, high = KNOWN_REST
        return Interval.relative(stated, low_ratio=low, high_ratio=high), []
    rest = next(mw for start, mw in ASSUMED_REST_MW if target.core.startswith(start))
    return rest, [
        (
            f"the power between inferences is assumed: {rest.value:g} mW ({rest.low:g} to {rest.high:g}); "
            "the target states neither sleep_mw nor idle_mw"
        )
    ]
