"""Quantities with units: what is understood, what is refused, and what is shown."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit import quantities as q
from tightfit.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "ms"),
    [("20ms", 20), ("0.5s", 500), (" 20 ms ", 20), ("1e3us", 1), ("250µs", 0.25), ("7μs", 0.007)],
)
def test_latency_is_read_in_milliseconds(text: str, ms: float) -> None:
    assert q.parse_latency_ms(text, option="--max-latency") == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "mj"), [("1.5mJ", 1.5), ("1.5mj", 1.5), ("20uJ", 0.02), ("1J", 1e3)]
)
def test_energy_is_read_in_millijoules(text: str, mj: float) -> None:
    assert q.parse_energy_mj(text, option="--max-energy") == pytest.approx(mj)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("128KiB", 131_072),
        ("128kib", 131_072),
        ("256kB", 256_000),
        ("1MB", 1_000_000),
        ("1.5MiB", 1_572_864),
        ("7B", 7),
    ],
)
def test_iec_and_si_sizes_differ(text: str, size: int) -> None:
    assert q.parse_bytes(text, option="--max-ram") == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("10min", 600),
        ("1h30m", 5_400),
        ("1h 30m", 5_400),
        ("1.5h", 5_400),
        ("1d2h", 93_600),
    ],
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert q.parse_duration_s(text, option="--max-time") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["20", "", "ms", "-1ms", "0ms", "nanms", "infms", "20 parsecs", "2 0ms", "1.5Ms"]
)
def test_a_bad_latency_names_the_option_and_says_how_to_write_it(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        q.parse_latency_ms(text, option="--max-latency")
    assert caught.value.field == "--max-latency"
    assert "ms" in caught.value.remedy


def test_mega_never_stands_for_milli() -> None:
    with pytest.raises(InvalidInputError, match="unknown unit 'MJ'"):
        q.parse_energy_mj("1.5MJ", option="--max-energy")


@pytest.mark.parametrize("text", ["1h1h", "0h0m", "5x", "60", "-5m"])
def test_a_bad_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        q.parse_duration_s(text, option="--max-time")
    assert caught.value.field == "--max-time"


def test_less_than_a_byte_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="less than one byte"):
        q.parse_bytes("0.5B", option="--max-size")


@pytest.mark.parametrize("value", [95.0, 0.0, -0.1, math.nan, math.inf])
def test_a_percentage_is_no_fraction(value: float) -> None:
    with pytest.raises(InvalidInputError, match="no fraction"):
        q.parse_fraction(value, option="--min-accuracy")


def test_a_drop_of_zero_is_a_fraction_and_a_drop_of_one_is_not() -> None:
    assert q.parse_fraction(0.0, option="--max-accuracy-drop", zero_allowed=True) == 0
    with pytest.raises(InvalidInputError):
        q.parse_fraction(1.0, option="--max-accuracy-drop", zero_allowed=True)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (q.format_latency(12.345), "12.3 ms"),
        (q.format_latency(0.0123), "12.3 µs"),
        (q.format_latency(20.0), "20.0 ms"),
        (q.format_latency(123_456), "123 s"),
        (q.format_energy(0.9), "0.900 mJ"),
        (q.format_bytes(98_496), "96.2 KiB"),
        (q.format_bytes(512), "512 B"),
        (q.format_count(12_501_632), "12.5 M"),
        (q.format_range(q.format_latency, 14.0, 17.81), "14.0 to 17.8 ms"),
        (q.format_range(q.format_bytes, 900, 2048), "900 B to 2.00 KiB"),
        (q.format_percent(0.8708), "87.08 %"),
        (q.format_duration(8.21), "8.2s"),
        (q.format_duration(185), "3m05s"),
        (q.format_duration(3_725), "1h02m"),
    ],
)
def test_figures_are_shown_short(shown: str, expected: str) -> None:
    assert shown == expected


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_an_offered_limit_lets_the_figure_through(value: float) -> None:
    latency = q.parse_latency_ms(q.latency_option(value), option="--max-latency")
    assert value <= latency * (1 + 1e-9)
    assert latency <= value * 1.02
    assert q.parse_energy_mj(q.energy_option(value), option="--max-energy") >= value * (1 - 1e-9)


@given(st.integers(min_value=1, max_value=2**40))
def test_an_offered_size_lets_the_size_through(size: int) -> None:
    assert q.parse_bytes(q.bytes_option(size), option="--max-ram") >= size
