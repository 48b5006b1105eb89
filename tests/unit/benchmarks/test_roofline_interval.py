"""How wide intervals are by the rows of public tables: devices count alike, and a new one beside them."""

from __future__ import annotations

import math

import pytest
from benchmarks.comparison import Comparison
from benchmarks.roofline_interval import fit_interval

from tightfit_service.adapters.emulators.roofline import LOG_HALF_WIDTH
from tightfit_service.domain.quantities import Interval


def row(board: str, ratio: float, *, core: str = "cortex-a53", assumed: float = 0.0) -> Comparison:
    """A row that took `ratio` times what was estimated."""
    half = math.exp(LOG_HALF_WIDTH + assumed)
    return Comparison(
        quantity="latency_ms",
        core=core,
        group="made up",
        board=board,
        model="any",
        known="core class, not calibrated",
        estimate=Interval(value=1.0, low=1 / half, high=half),
        measured=ratio,
    )


def test_a_device_with_many_rows_says_no_more_than_another() -> None:
    few = [row(f"device {i}", 1 + i / 10) for i in range(19)]
    many = few + [row("device 0", 1.0) for _ in range(200)]
    # of 19 devices and the one to come nine in ten are 18
    assert fit_interval(few).factor == pytest.approx(2.7)
    assert fit_interval(many).factor == pytest.approx(2.7)
    assert fit_interval(many).row_count == 219
    assert fit_interval(many).device_count == 19


def test_a_few_devices_tell_of_no_width_at_all() -> None:
    assert fit_interval([row(f"device {i}", 1.5) for i in range(8)]).factor == math.inf


def test_faster_counts_as_much_as_slower_and_what_is_assumed_is_taken_off() -> None:
    slower = [row(f"device {i}", 2.0) for i in range(20)]
    faster = [row(f"device {i}", 0.5) for i in range(20)]
    assumed = [row(f"device {i}", 2.0, assumed=math.log(1.25)) for i in range(20)]
    assert fit_interval(faster).factor == pytest.approx(fit_interval(slower).factor) == 2.0
    assert fit_interval(assumed).factor == pytest.approx(2.0 / 1.25)


def test_the_coverage_is_that_of_devices_that_had_no_say() -> None:
    rows = [row(f"device {i}", 1.1) for i in range(29)] + [row("odd", 9.0), row("odd", 1.0)]
    assert fit_interval(rows).left_out_coverage == pytest.approx(30 / 31)


def test_other_emulators_have_no_say() -> None:
    rows = [row(f"device {i}", 1.1) for i in range(20)]
    assert fit_interval([*rows, row("board", 50.0, core="cortex-m4")]) == fit_interval(rows)
