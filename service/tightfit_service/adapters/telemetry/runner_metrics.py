"""Prometheus metrics of the runners and of what they measure."""

from __future__ import annotations

import threading
from collections import Counter as Counts
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tightfit_service.adapters.telemetry.series import BoundedLabel

WAIT_SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1_800, 3_600, 7_200)
"""Buckets from an idle device to one that is hours behind."""
RESIDUAL_RATIOS = (0.25, 0.5, 0.67, 0.75, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.33, 1.5, 2.0, 4.0)
"""Buckets around 1, where the device does what the emulator said; 0.9 to 1.1 is within ten percent."""

MOST_TARGETS = 200
"""Targets with series of their own, about twice the catalogue; users may describe more, which count as `other`."""


class RunnerMetrics:
    """Implements `application.ports.RunnerTelemetry` in a registry. Every method is thread-safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._bounded = BoundedLabel(most=MOST_TARGETS)
        self._shown: set[tuple[str, str]] = set()
        self._runners = Gauge(
            "tightfit_runners",
            "Runners by state (idle, busy, offline, quarantined) and by target that they stand for.",
            ("state", "target"),
            registry=registry,
        )
        self._measurements = Counter(
            "tightfit_measurements",
            "Attempts to measure on a device that ended, by target and outcome (measured, or a failure's kind).",
            ("target", "outcome"),
            registry=registry,
        )
        self._wait = Histogram(
            "tightfit_measurement_queue_wait_seconds",
            "Time that a measurement waited for a device.",
            buckets=WAIT_SECONDS,
            registry=registry,
        )
        self._residual = Histogram(
            "tightfit_measurement_residual_ratio",
            "Measured value divided by the emulator's estimate, by target and quantity.",
            ("target", "quantity"),
            buckets=RESIDUAL_RATIOS,
            registry=registry,
        )

    def runner_states(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Show how many runners there are; states that nobody is in any more go to zero."""
        bounded: Counts[tuple[str, str]] = Counts()
        for (state, target), count in counts.items():
            bounded[state, self._target(target)] += count
        for state, target in self._shown | bounded.keys():
            self._runners.labels(state=state, target=target).set(bounded[state, target])
        self._shown |= bounded.keys()

    def measurement_finished(self, target: str, outcome: str) -> None:
        """Count the end of an attempt."""
        self._measurements.labels(target=self._target(target), outcome=outcome).inc()

    def measurement_waited(self, seconds: float) -> None:
        """Count a wait."""
        self._wait.observe(seconds)

    def measurement_residual(self, target: str, quantity: str, ratio: float) -> None:
        """Count a pair of estimate and measurement."""
        self._residual.labels(target=self._target(target), quantity=quantity).observe(ratio)

    def _target(self, name: str) -> str:
        with self._lock:
            return self._bounded(name)
