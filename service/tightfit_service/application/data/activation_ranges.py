"""Ranges of activations over calibration samples, collected batch by batch in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.application.data.histogram import Histogram
from tightfit_service.domain.errors import InvalidRequestError

DEFAULT_PERCENTILE = 99.99

_CLIP_STEPS = 48
"""Candidate ranges that the mse method tries, from the whole range down to a fifth of it."""
_SMALLEST_CLIP = 0.2
_STEPS = 255
"""Steps between the least and the greatest of 8-bit integers."""

_ENTROPY_CANDIDATES = 128
"""Thresholds that the entropy method tries; TensorRT tries each of its 2048 bins."""
_ABSENT = 1e-12
"""Probability of what quantization makes impossible, which has no logarithm."""

Batches = Callable[[], Iterable[Mapping[str, npt.NDArray[np.float32]]]]
"""Starts a pass over the calibration set: tensor name to values, one mapping per batch."""


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """Range of a tensor that its integers must span; `low <= 0 <= high`."""

    low: float
    high: float


def calibrate(
    batches: Batches, *, method: str, percentile: float = DEFAULT_PERCENTILE
) -> dict[str, TensorRange]:
    """Return the range of every tensor after one pass over the batches.

    `minmax` spans all values seen. `percentile` keeps the given share of them, in percent, and
    leaves out as much on either side. `mse` takes the range with the least squared error of rounding
    and clipping. `entropy` takes the threshold whose histogram tells the most about the original
    one, as TensorRT does (S. Migacz, "8-bit Inference with TensorRT", GTC 2017). Zero is always inside.

    Held in memory are one batch and, per tensor, one histogram of 32 KiB.

    Raises:
        InvalidRequestError: An unknown method, a percentile outside (50, 100], or values that are
            not finite.
    """
    check_method(method, percentile)
    return {
        name: chosen_range(histogram, method=method, percentile=percentile)
        for name, histogram in collect(batches()).items()
    }


def check_method(method: str, percentile: float) -> None:
    """Refuse what is no calibration method.

    Raises:
        InvalidRequestError: An unknown method, or a percentile outside (50, 100].
    """
    if method not in METHODS:
        raise InvalidRequestError(
            f"{method!r} is no calibration method",
            field="quantization.method",
            remedy="use " + ", ".join(METHODS),
        )
    if not 50.0 < percentile <= 100.0:
        raise InvalidRequestError(
            f"a percentile of {percentile:g} keeps too few or impossibly many values",
            field="quantization.percentile",
            remedy="use a share in percent above 50 and up to 100, such as 99.99",
        )


def collect(batches: Iterable[Mapping[str, npt.NDArray[np.float32]]]) -> dict[str, Histogram]:
    """Return the histogram of every tensor's values.

    Raises:
        InvalidRequestError: Values that are not finite.
    """
    histograms: dict[str, Histogram] = {}
    for batch in batches:
        for name, values in batch.items():
            if not values.size:
                continue
            # A sum of finite values is finite or infinite, never NaN; min and max carry both.
            if not (np.isfinite(values.min()) and np.isfinite(values.max())):
                raise InvalidRequestError(
                    f"tensor {name!r} has NaN or infinite values on the calibration samples",
                    field="model",
                    remedy="check the model's weights and the dataset's preprocessing",
                )
            histograms.setdefault(name, Histogram()).add(values)
    return histograms


def chosen_range(
    histogram: Histogram, *, method: str, percentile: float = DEFAULT_PERCENTILE
) -> TensorRange:
    """Return the range that a method takes for one tensor."""
    if method == "minmax" or histogram.is_flat:
        return TensorRange(low=histogram.low, high=histogram.high)
    if method == "percentile":
        return _percentile_range(histogram, percentile)
    return _OTHERS[method](histogram)


def _percentile_range(histogram: Histogram, percentile: float) -> TensorRange:
    edges, counts = histogram.edges, histogram.counts
    share = np.cumsum(counts) / counts.sum()
    cut = (1 - percentile / 100) / 2
    first = int(np.searchsorted(share, cut, side="right"))
    last = min(int(np.searchsorted(share, 1 - cut)), len(counts) - 1)
    return TensorRange(
        low=min(0.0, max(histogram.low, float(edges[first]))),
        high=max(0.0, min(histogram.high, float(edges[last + 1]))),
    )


def _least_error_range(histogram: Histogram) -> TensorRange:
    centres, counts = histogram.centres, histogram.counts
    shares = np.linspace(1.0, _SMALLEST_CLIP, _CLIP_STEPS)
    low, high = histogram.low, histogram.high
    # One end after the other, twice: an outlier is mostly on one side only.
    for _ in range(2):
        high = min(
            (histogram.high * share for share in shares),
            key=lambda end: _error(centres, counts, low, end),
        )
        low = min(
            (histogram.low * share for share in shares),
            key=lambda end: _error(centres, counts, end, high),
        )
    return TensorRange(low=float(low), high=float(high))


def _error(
    centres: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], low: float, high: float
) -> float:
    """Return the summed squared error of rounding to the levels between low and high."""
    step = (high - low) / _STEPS
    rounded = np.round((np.clip(centres, low, high) - low) / step) * step + low
    return float(((centres - rounded) ** 2 * counts).sum())


def _least_divergence_range(histogram: Histogram) -> TensorRange:
    """Clip magnitudes where the Kullback-Leibler divergence to the whole histogram is least.

    Magnitudes of tensors with negative values share half the levels. Zero is exact in any range, so
    its bin is levelled with its neighbour (as in NVIDIA's pytorch-quantization), which otherwise
    outweighs all others behind a Relu.
    """
    magnitudes = histogram.magnitudes().astype(np.float64)
    levels = 128 if histogram.low < 0 < histogram.high else 256
    if len(magnitudes) <= levels:
        return TensorRange(low=histogram.low, high=histogram.high)
    magnitudes[0] = magnitudes[1]
    if not magnitudes.any():
        return TensorRange(low=histogram.low, high=histogram.high)
    stride = max(1, (len(magnitudes) - levels) // _ENTROPY_CANDIDATES)
    # Counted from the end, so that the whole range is among the candidates.
    candidates = range(len(magnitudes), levels - 1, -stride)
    kept = min(candidates, key=lambda count: _divergence(magnitudes, count, levels))
    threshold = kept * histogram.width
    return TensorRange(low=max(histogram.low, -threshold), high=min(histogram.high, threshold))


def _divergence(magnitudes: npt.NDArray[np.float64], kept: int, levels: int) -> float:
    """Return the divergence of clipped magnitudes from those that the levels can tell apart."""
    inside = magnitudes[:kept]
    reference = inside.copy()
    reference[-1] += magnitudes[kept:].sum()
    level = np.arange(kept) * levels // kept
    filled = inside > 0
    totals = np.bincount(level, weights=inside, minlength=levels)
    sharing = np.maximum(np.bincount(level, weights=filled, minlength=levels), 1)
    quantized = np.where(filled, (totals / sharing)[level], 0.0)
    p = reference / reference.sum()
    q = np.maximum(quantized / max(quantized.sum(), _ABSENT), _ABSENT)
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


_OTHERS: Mapping[str, Callable[[Histogram], TensorRange]] = {
    "mse": _least_error_range,
    "entropy": _least_divergence_range,
}
METHODS = ("minmax", "percentile", *_OTHERS)
