"""One estimated figure beside a measured one, and scores over many."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tightfit_service.domain.quantities import Interval


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One estimated figure beside the measured one."""

    quantity: str
    core: str
    group: str
    board: str
    model: str
    known: str
    """What the emulator knew of the target."""
    estimate: Interval
    measured: float
    platform: str = "Cortex-M"
    float32: bool = False

    @property
    def error(self) -> float:
        """Estimate over measurement, minus one."""
        return self.estimate.value / self.measured - 1

    @property
    def covered(self) -> bool:
        """Whether the interval holds the measurement."""
        return self.estimate.low <= self.measured <= self.estimate.high


def summarise(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return one entry of scores per quantity as a whole and by core, group and board."""
    keys: Mapping[str, Callable[[Comparison], str]] = {
        "all": lambda _: "",
        "core": lambda c: c.core,
        "platform": lambda c: c.platform,
        "group": lambda c: c.group,
        "board": lambda c: c.board,
        "known": lambda c: c.known,
        "number_format": lambda c: "float32" if c.float32 else "int8",
    }
    summary: list[dict[str, Any]] = []
    for quantity in dict.fromkeys(c.quantity for c in comparisons):
        chosen = [c for c in comparisons if c.quantity == quantity]
        for by, key in keys.items():
            summary.extend(
                {"quantity": quantity, "by": by, "value": value}
                | _scores([c for c in chosen if key(c) == value])
                for value in sorted({key(c) for c in chosen})
            )
    return summary


def _scores(comparisons: Sequence[Comparison]) -> dict[str, float]:
    errors = np.array([c.error for c in comparisons])
    return {
        "n": len(comparisons),
        "median_ape": round(float(np.median(np.abs(errors))), 4),
        "p90_ape": round(float(np.percentile(np.abs(errors), 90)), 4),
        "within_10": round(float(np.mean(np.abs(errors) <= 0.10)), 4),
        "within_25": round(float(np.mean(np.abs(errors) <= 0.25)), 4),
        "bias": round(float(np.median(errors)), 4),
        "coverage": round(float(np.mean([c.covered for c in comparisons])), 4),
        "median_width": round(
            float(
                np.median(
                    [math.sqrt(c.estimate.high / max(c.estimate.low, 1e-12)) for c in comparisons]
                )
            )
            - 1,
            4,
        ),
    }
