"""How wide the intervals of the roofline emulator have to be: conformal prediction on public tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.comparison import Comparison

from tightfit_service.adapters.emulators.roofline import CONFIDENCE, CORES, LOG_HALF_WIDTH


@dataclass(frozen=True, kw_only=True)
class IntervalFit:
    """What the rows say of `LOG_HALF_WIDTH`."""

    row_count: int
    device_count: int
    factor: float
    """Either way, beside what figures add that a target does not state: covers 90 % on another device."""
    left_out_coverage: float
    """Share of rows that the factor of the other devices covers."""


def fit_interval(comparisons: Sequence[Comparison]) -> IntervalFit:
    """Return the fit to the rows of processor cores that the roofline estimates.

    R. Dunn, L. Wasserman and A. Ramdas, "Distribution-free prediction sets for two-layer hierarchical
    models", JASA 2022 (arXiv:1809.07441): devices count alike however many rows they have, and the
    device of a user is one more, of which nothing is known. The residual of a row is what it is off
    beyond what assumed figures add to its interval.
    """
    excesses: dict[str, list[float]] = {}
    for row in comparisons:
        if row.core in CORES:
            excesses.setdefault(row.board, []).append(_excess(row))
    covered = []
    for device, own in excesses.items():
        width = _quantile([rest for other, rest in excesses.items() if other != device])
        covered += [excess <= width for excess in own]
    return IntervalFit(
        row_count=len(covered),
        device_count=len(excesses),
        factor=math.exp(_quantile(list(excesses.values()))),
        left_out_coverage=float(np.mean(covered)),
    )


def _excess(row: Comparison) -> float:
    assumed = math.log(row.estimate.high / row.estimate.value) - LOG_HALF_WIDTH
    return abs(math.log(row.measured / row.estimate.value)) - assumed


def _quantile(devices: Sequence[Sequence[float]]) -> float:
    """Return the excess that a row of one more device keeps below with the confidence of intervals."""
    values = np.concatenate([np.array(device) for device in devices])
    shares = np.concatenate([np.full(len(device), 1 / len(device)) for device in devices])
    order = np.argsort(values)
    cumulated = np.cumsum(shares[order]) / (len(devices) + 1)
    # shares are added up with errors of rounding
    place = int(np.searchsorted(cumulated, CONFIDENCE - 1e-9))
    return float(values[order][place]) if place < len(values) else math.inf
