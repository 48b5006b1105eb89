"""When a latency is steady, and how it is summed up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np

BLOCK_SECONDS = 0.05
"""A block of runs spans several ticks of a scheduler, so that its median does not hang on one of them."""
STEADY_BLOCKS = 5
STEADY_RATIO = 0.05
"""Spread of the last blocks' fastest runs, relative to their median, below which a latency is steady."""
UNDISTURBED = 10
"""Percentile of the runs that nobody disturbed. On a core whose other thread belongs to somebody else, the
median moves by half from second to second, this by a hundredth."""
SETTLED_RATIO = 0.10
"""Spread over the parts of the measurement above which it does not count as settled."""
PARTS = 10
P99_RUNS = 100


@dataclass(frozen=True)
class Summary:
    """What was seen of one model; times in milliseconds."""

    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    throughput_per_s: float
    run_count: int
    noise_ratio: float


def warm_up(
    run: Callable[[], object],
    *,
    most_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, bool]:
    """Run until the latency is steady.

    Args:
        run: Runs the model once.
        most_seconds: After which it is given up.
        clock: Seconds that never jump.

    Returns:
        The number of runs, and whether the latency was steady in the end.
    """
    begin = clock()
    lows: list[float] = []
    count = 0
    while True:
        block: list[float] = []
        start = now = clock()
        while not block or now - start < BLOCK_SECONDS:
            run()
            after = clock()
            block.append(after - now)
            now = after
        count += len(block)
        # not the median: what others do to the device meanwhile says nothing about its warmth
        lows.append(float(np.percentile(block, UNDISTURBED)))
        if len(lows) >= STEADY_BLOCKS and spread(lows[-STEADY_BLOCKS:]) <= STEADY_RATIO:
            return count, True
        if now - begin >= most_seconds:
            return count, False


def measure(
    run: Callable[[], object],
    *,
    min_runs: int,
    min_seconds: float,
    most_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the seconds of each run: of so many and so long, or until `most_seconds` are over."""
    seconds: list[float] = []
    begin = now = clock()
    while True:
        run()
        after = clock()
        seconds.append(after - now)
        now = after
        elapsed = now - begin
        if (len(seconds) >= min_runs and elapsed >= min_seconds) or elapsed >= most_seconds:
            return seconds


def summarize(seconds: Sequence[float]) -> Summary:
    """Return percentiles, throughput and noise of the runs, in their order."""
    times = np.asarray(seconds, dtype=float)
    p10, p50, p90, p99 = (
        float(value) * 1e3 for value in np.percentile(times, (UNDISTURBED, 50, 90, 99))
    )
    parts = [
        part for part in np.array_split(times, min(PARTS, max(1, len(times) // 3))) if len(part)
    ]
    return Summary(
        p10_ms=p10,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if len(times) >= P99_RUNS else None,
        throughput_per_s=len(times) / float(times.sum()),
        run_count=len(times),
        noise_ratio=spread([float(np.median(part)) for part in parts]),
    )


def spread(medians: Sequence[float]) -> float:
    """Return the distance of the extremes, relative to the median."""
    middle = float(np.median(medians))
    return (max(medians) - min(medians)) / middle if middle > 0 else 0.0
