"""Confidence intervals of metrics that are no plain shares: by drawing the samples again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.quantities import Accuracy

Weights = npt.NDArray[np.float64]
"""How often each sample was drawn, shape (n,)."""

_DRAWS = 400
_FEWEST_DRAWS = 40
_WORK = 2e8
"""Operations that an interval may cost, in samples times draws times classes."""
_SEED = 20
_TAIL = 2.5


def bootstrap_accuracy(
    metric: Callable[[Weights], float], sample_count: int, *, cost: int = 1
) -> Accuracy:
    """Return a metric with its 95 % percentile interval (Efron and Tibshirani, 1993, chapter 13).

    The same samples give the same interval: the draws are seeded.

    Args:
        metric: The value, in [0, 1], where sample i counts `weights[i]` times.
        sample_count: Number of samples, at least 1.
        cost: Operations of `metric` per sample; costly metrics are drawn less often.
    """
    value = _limited(metric(np.ones(sample_count)))
    if sample_count < 2:
        return Accuracy(value=value, low=0.0, high=1.0, sample_count=sample_count)
    count = int(np.clip(_WORK / (cost * sample_count), _FEWEST_DRAWS, _DRAWS))
    drawn = [_limited(metric(weights)) for weights in _redrawn(sample_count, count)]
    low, high = np.percentile(drawn, [_TAIL, 100 - _TAIL])
    return Accuracy(
        value=value,
        low=min(value, float(low)),
        high=max(value, float(high)),
        sample_count=sample_count,
    )


def _redrawn(sample_count: int, count: int) -> Iterator[Weights]:
    random = np.random.default_rng(_SEED)
    for _ in range(count):
        drawn = random.integers(0, sample_count, sample_count)
        yield np.bincount(drawn, minlength=sample_count).astype(np.float64)


def _limited(value: float) -> float:
    return float(np.clip(np.nan_to_num(value, nan=0.0), 0.0, 1.0))
