"""Quantities with units, as people write them: parsed from options, and shown again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from tightfit.errors import InvalidInputError

LATENCY_UNITS: Mapping[str, float] = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
"""Unit to milliseconds."""
ENERGY_UNITS: Mapping[str, float] = {"nJ": 1e-6, "uJ": 1e-3, "µJ": 1e-3, "mJ": 1.0, "J": 1e3}
"""Unit to millijoules."""
BYTE_UNITS: Mapping[str, float] = {
    "B": 1,
    "kB": 1_000,
    "MB": 1_000_000,
    "GB": 1_000_000_000,
    "KiB": 1_024,
    "MiB": 1_024**2,
    "GiB": 1_024**3,
}
"""Unit to bytes; IEC names are powers of 1024, SI names powers of 1000."""
DURATION_UNITS: Mapping[str, float] = {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
"""Unit to seconds."""

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_QUANTITY = re.compile(
    rf"\s*({_NUMBER}|[+-]?(?:nan|inf)(?:inity)?)\s*([A-Za-zµμ]*)\s*", re.IGNORECASE
)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?)\s*(d|h|min|m|s)")
_EXAMPLES = {"ms": "20ms", "mJ": "1.5mJ", "KiB": "128KiB", "m": "10m or 1h30m"}


def parse_latency_ms(text: str, *, option: str) -> float:
    """Return milliseconds from text such as `20ms`.

    Raises:
        InvalidInputError: No unit, an unknown unit, or a number that is not positive and finite.
    """
    return _parse(text, LATENCY_UNITS, option=option, example=_EXAMPLES["ms"])


def parse_energy_mj(text: str, *, option: str) -> float:
    """Return millijoules from text such as `1.5mJ`.

    Raises:
        InvalidInputError: No unit, an unknown unit, or a number that is not positive and finite.
    """
    return _parse(text, ENERGY_UNITS, option=option, example=_EXAMPLES["mJ"])


def parse_bytes(text: str, *, option: str) -> int:
    """Return bytes from text such as `128KiB` or `256kB`, rounded down to a whole byte.

    Raises:
        InvalidInputError: No unit, an unknown unit, or less than one byte.
    """
    size = int(_parse(text, BYTE_UNITS, option=option, example=_EXAMPLES["KiB"]))
    if size < 1:
        raise InvalidInputError(
            f"{text!r} is less than one byte", field=option, remedy="give at least 1B"
        )
    return size


def parse_duration_s(text: str, *, option: str) -> float:
    """Return seconds from text such as `90s`, `10m` or `1h30m`.

    Raises:
        InvalidInputError: No unit, an unknown unit, or a time that is not positive.
    """
    stripped = text.strip()
    parts = _DURATION_PART.findall(stripped)
    compact = "".join(f"{number}{unit}" for number, unit in parts)
    if len(parts) > 1 and compact == stripped.replace(" ", ""):
        units = [unit.replace("min", "m") for _, unit in parts]
        if len(set(units)) < len(units):
            raise InvalidInputError(
                f"{text!r} names a unit twice", field=option, remedy="write it once, as in 1h30m"
            )
        seconds = sum(float(number) * DURATION_UNITS[unit] for number, unit in parts)
        if seconds > 0:
            return seconds
    return _parse(text, DURATION_UNITS, option=option, example=_EXAMPLES["m"])


def parse_fraction(value: float, *, option: str, zero_allowed: bool = False) -> float:
    """Return a fraction in (0, 1], or [0, 1) where zero is allowed (a drop).

    Raises:
        InvalidInputError: Outside that range, with the advice that 0.95 means 95 %.
    """
    in_range = 0 <= value < 1 if zero_allowed else 0 < value <= 1
    if not in_range:
        share = "0.01 allows one percentage point" if zero_allowed else "0.95 means 95 %"
        raise InvalidInputError(
            f"{value:g} is no fraction in {'[0, 1)' if zero_allowed else '(0, 1]'}",
            field=option,
            remedy=f"give a fraction: {share}",
        )
    return value


def _parse(text: str, units: Mapping[str, float], *, option: str, example: str) -> float:
    offered = ", ".join(units)
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"{text!r} is not a number with a unit",
            field=option,
            remedy=f"write it like {example}; units: {offered}",
        )
    number, unit = match.group(1), match.group(2).replace("μ", "µ")
    value = float(number)
    if not math.isfinite(value) or value <= 0:
        raise InvalidInputError(
            f"{text!r} is not a positive number",
            field=option,
            remedy=f"give something above zero, like {example}, or leave the option out",
        )
    if not unit:
        raise InvalidInputError(
            f"{text!r} has no unit", field=option, remedy=f"add one of: {offered}"
        )
    factor = _unit_factor(unit, units)
    if factor is None:
        raise InvalidInputError(
            f"{text!r} has an unknown unit {unit!r}",
            field=option,
            remedy=f"use one of: {offered}",
        )
    return value * factor


def _unit_factor(unit: str, units: Mapping[str, float]) -> float | None:
    """Match a unit exactly, or in any case where only one unit is meant (`kib`, `MS`)."""
    if unit in units:
        return units[unit]
    same = [factor for name, factor in units.items() if name.lower() == unit.lower()]
    # mJ and MJ differ by nine orders of magnitude: a capital M never stands for milli
    if unit.startswith("M") and not any(name.startswith("M") for name in units):
        return None
    return same[0] if len(same) == 1 else None


def format_latency(ms: float) -> str:
    """Return a latency in the unit that reads best, three significant digits."""
    if ms >= 1_000:
        return f"{_digits(ms / 1_000)} s"
    if ms >= 0.1:
        return f"{_digits(ms)} ms"
    return f"{_digits(ms * 1_000)} µs"


def format_energy(mj: float) -> str:
    """Return an energy in the unit that reads best, three significant digits."""
    if mj >= 1_000:
        return f"{_digits(mj / 1_000)} J"
    if mj >= 0.1:
        return f"{_digits(mj)} mJ"
    return f"{_digits(mj * 1_000)} µJ"


def format_bytes(size: float) -> str:
    """Return a size in IEC units, three significant digits from 1 KiB on."""
    for unit, factor in (("GiB", 1_024**3), ("MiB", 1_024**2), ("KiB", 1_024)):
        if size >= factor:
            return f"{_digits(size / factor)} {unit}"
    return f"{size:.0f} B"


def format_count(count: float) -> str:
    """Return a count with an SI suffix: `12.5 M`."""
    for suffix, factor in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if count >= factor:
            return f"{_digits(count / factor)}{suffix}"
    return f"{count:.0f}"


def format_percent(fraction: float) -> str:
    """Return a fraction as a percentage with two decimals."""
    return f"{fraction * 100:.2f} %"


def format_duration(seconds: float) -> str:
    """Return a time span as `8.2s`, `3m05s` or `1h02m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def format_range(show: Callable[[float], str], low: float, high: float) -> str:
    """Return `14.0 to 17.8 ms`: both ends, the unit once where they share it."""
    first, last = show(low), show(high)
    number, _, unit = first.partition(" ")
    return f"{number if unit and last.endswith(' ' + unit) else first} to {last}"


def latency_option(ms: float) -> str:
    """Return a latency as an option value, rounded up so that the limit lets `ms` through."""
    if ms >= 1:
        return f"{_ceil_digits(ms)}ms"
    return f"{_ceil_digits(ms * 1_000)}us"


def energy_option(mj: float) -> str:
    """Return an energy as an option value, rounded up so that the limit lets `mj` through."""
    if mj >= 1:
        return f"{_ceil_digits(mj)}mJ"
    return f"{_ceil_digits(mj * 1_000)}uJ"


def bytes_option(size: float) -> str:
    """Return a size as an option value, rounded up so that the limit lets `size` through."""
    if size >= 1_024:
        return f"{math.ceil(size / 1_024)}KiB"
    return f"{math.ceil(size)}B"


def _digits(value: float) -> str:
    """Three significant digits without an exponent."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def _ceil_digits(value: float) -> str:
    """Three significant digits, never below `value`."""
    scale = 10 ** max(0, 2 - math.floor(math.log10(value)))
    # a value that is exact in three digits must not be pushed up by binary rounding
    up = math.ceil(value * scale - 1e-9) / scale
    return f"{up:.6f}".rstrip("0").rstrip(".")
