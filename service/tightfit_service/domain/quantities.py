"""Numbers with error bars: estimates as intervals, and accuracies with their sampling error."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimated quantity and the interval that covers the truth at the stated confidence.

    `low <= value <= high`; the unit is that of the field that holds the interval.
    """

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Interval:
        """Return an interval of zero width, for quantities that are known."""
        return cls(value=value, low=value, high=value)

    @classmethod
    def relative(cls, value: float, *, low_ratio: float, high_ratio: float) -> Interval:
        """Return `value` with bounds at `value * low_ratio` and `value * high_ratio`."""
        return cls(value=value, low=value * low_ratio, high=value * high_ratio)

    def scaled(self, factor: float) -> Interval:
        """Return all three numbers multiplied by `factor` (non-negative)."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of right answers on a finite set, with its confidence interval.

    All three values are fractions in [0, 1].
    """

    value: float
    low: float
    high: float
    sample_count: int


def wilson_accuracy(correct_count: float, sample_count: int, *, z: float = 1.959964) -> Accuracy:
    """Return the accuracy with its Wilson score interval (95 % by default).

    Args:
        correct_count: Number of right answers; may be fractional for averaged scores in [0, 1].
        sample_count: Number of samples, at least 1.
        z: Normal quantile of the confidence level.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927). It behaves near 0 and 1 and on small sets, where the normal interval does not.
    """
    if sample_count < 1:
        raise ValueError("an accuracy needs at least one sample")
    share = correct_count / sample_count
    z2 = z * z
    denominator = 1.0 + z2 / sample_count
    centre = (share + z2 / (2 * sample_count)) / denominator
    half = (
        z * math.sqrt(share * (1 - share) / sample_count + z2 / (4 * sample_count**2)) / denominator
    )
    return Accuracy(
        value=share,
        low=min(share, max(0.0, centre - half)),
        high=max(share, min(1.0, centre + half)),
        sample_count=sample_count,
    )
