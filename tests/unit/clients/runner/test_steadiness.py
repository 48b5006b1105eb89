"""Warm-up until steady, percentiles, and noise that is said, on a clock that the test owns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from tightfit_runner import steadiness


class Machine:
    """Runs take the times that are given, on a clock that moves by them."""

    def __init__(self, seconds: Iterable[float]) -> None:
        self._seconds: Iterator[float] = iter(seconds)
        self.now = 0.0

    def run(self) -> None:
        self.now += next(self._seconds)

    def clock(self) -> float:
        return self.now


def test_a_warm_up_ends_when_the_latency_is_steady() -> None:
    falling = [0.1 * 0.8**i for i in range(12)]
    machine = Machine([*falling, *itertools.repeat(0.01, 1_000)])
    count, steady = steadiness.warm_up(machine.run, most_seconds=100, clock=machine.clock)

    assert steady
    assert count > len(falling)
    blocks = steadiness.STEADY_BLOCKS + 1
    assert count <= len(falling) + blocks * (steadiness.BLOCK_SECONDS / 0.01 + 1)


def test_others_on_the_device_do_not_make_it_look_cold() -> None:
    chance = np.random.default_rng(2)
    # every third run or so is half as long again, as on a core whose other thread is somebody else's
    shared = (0.001 * (1.5 if chance.random() < 0.35 else 1.0) for _ in itertools.count())
    machine = Machine(shared)
    count, steady = steadiness.warm_up(machine.run, most_seconds=100, clock=machine.clock)
    assert steady
    assert count * 0.001 < 1.0

    summary = steadiness.summarize([next(shared) for _ in range(400)])
    assert summary.p10_ms == pytest.approx(1.0)


def test_a_warm_up_that_never_gets_steady_is_given_up_and_says_so() -> None:
    machine = Machine(0.06 if i % 2 else 0.12 for i in itertools.count())
    count, steady = steadiness.warm_up(machine.run, most_seconds=3, clock=machine.clock)

    assert not steady
    assert 3 <= machine.now <= 3.5
    assert count > 10


def test_it_measures_so_many_runs_and_so_long() -> None:
    def runs(seconds: float, **limits: float) -> int:
        machine = Machine(itertools.repeat(seconds))
        values = {"min_seconds": 1.0, "most_seconds": 60.0, **limits}
        return len(steadiness.measure(machine.run, min_runs=100, clock=machine.clock, **values))

    assert runs(0.125) == 100
    assert runs(0.00390625) == 256
    assert runs(4.0) == 15


def test_percentiles_are_numpys_and_p99_needs_a_hundred_runs() -> None:
    seconds = np.random.default_rng(1).gamma(9.0, 1e-3, 500)
    summary = steadiness.summarize(seconds.tolist())

    assert summary.p10_ms == pytest.approx(np.quantile(seconds, 0.1) * 1e3)
    assert summary.p50_ms == pytest.approx(np.median(seconds) * 1e3)
    assert summary.p99_ms == pytest.approx(np.quantile(seconds, 0.99) * 1e3)
    assert summary.p50_ms < summary.p90_ms
    assert summary.throughput_per_s == pytest.approx(500 / seconds.sum())
    assert steadiness.summarize(seconds[:99].tolist()).p99_ms is None


def test_noise_is_the_spread_of_the_parts() -> None:
    steady = steadiness.summarize([0.01] * 200)
    drifting = steadiness.summarize([0.01] * 100 + [0.012] * 100)
    one_outlier = steadiness.summarize([0.01] * 199 + [1.0])

    assert steady.noise_ratio == 0
    assert drifting.noise_ratio == pytest.approx(0.002 / 0.011)
    assert one_outlier.noise_ratio == 0
    assert steadiness.summarize([0.5]).run_count == 1
