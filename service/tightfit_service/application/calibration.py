"""Ranges of activations over calibration samples, collected batch by batch in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tightfit_service.domain.errors import InvalidRequestError

METHODS = ("minmax", "percentile", "mse")

_BIN_COUNT = 2048
"""Of the histograms that percentile and mse look at; as onnxruntime's own calibrators have."""
_PERCENTILE = 99.999
_SMALLEST_SPAN = 1e-30
"""Narrower than this, float32 has no room to tell bins apart; the tensor is zero in all but name."""

_CLIP_STEPS = 48
"""Candidate ranges that the mse method tries, from the whole range down to a fifth of it."""
_SMALLEST_CLIP = 0.2
_LEVELS = 255

Batches = Callable[[], Iterable[Mapping[str, npt.NDArray[np.float32]]]]
"""Starts a pass over the calibration set: tensor name to values, one mapping per batch."""


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """Range of a tensor that its integers must span; `low <= 0 <= high`."""

    low: float
    high: float


def calibrate(batches: Batches, *, method: str) -> dict[str, TensorRange]:
    """Return the range of every tensor.

    `minmax` spans all values seen; `percentile` leaves out the rarest 0.001 %; `mse` takes the
    range with the least squared rounding and clipping error. Zero is always inside.

    Raises:
        InvalidRequestError: An unknown method, or values that are not finite.
    """
    if method not in METHODS:
        raise InvalidRequestError(
            f"{method!r} is no calibration method",
            field="quantization.method",
            remedy="use " + ", ".join(METHODS),
        )
    ranges = _spans(batches())
    if method == "minmax":
        return ranges
    histograms = _histograms(batches(), ranges)
    choose = _percentile_range if method == "percentile" else _least_error_range
    return {name: choose(histograms[name], ranges[name]) for name in ranges}


def _spans(batches: Iterable[Mapping[str, npt.NDArray[np.float32]]]) -> dict[str, TensorRange]:
    ranges: dict[str, TensorRange] = {}
    for batch in batches:
        for name, values in batch.items():
            if not values.size:
                continue
            smallest, largest = float(values.min()), float(values.max())
            # NaN makes both NaN; it must be looked for before min and max with 0 lose it.
            if not (np.isfinite(smallest) and np.isfinite(largest)):
                raise InvalidRequestError(
                    f"tensor {name!r} has NaN or infinite values on the calibration samples",
                    field="model",
                    remedy="check the model's weights and the dataset's preprocessing",
                )
            low, high = min(0.0, smallest), max(0.0, largest)
            seen = ranges.get(name)
            ranges[name] = TensorRange(
                low=low if seen is None else min(low, seen.low),
                high=high if seen is None else max(high, seen.high),
            )
    return ranges


def _histograms(
    batches: Iterable[Mapping[str, npt.NDArray[np.float32]]], ranges: Mapping[str, TensorRange]
) -> dict[str, npt.NDArray[np.int64]]:
    counts = {name: np.zeros(_BIN_COUNT, dtype=np.int64) for name in ranges}
    for batch in batches:
        for name, values in batch.items():
            span = ranges.get(name)
            if span is not None and span.high - span.low > _SMALLEST_SPAN:
                # np.histogram searches edges, which is several times slower for equal bins.
                place = (values.reshape(-1) - span.low) * (_BIN_COUNT / (span.high - span.low))
                bins = np.clip(place.astype(np.int32), 0, _BIN_COUNT - 1)
                counts[name] += np.bincount(bins, minlength=_BIN_COUNT)
    return counts


def _centres(span: TensorRange) -> npt.NDArray[np.float64]:
    edges = np.linspace(span.low, span.high, _BIN_COUNT + 1)
    return np.asarray((edges[:-1] + edges[1:]) / 2, dtype=np.float64)


def _percentile_range(counts: npt.NDArray[np.int64], span: TensorRange) -> TensorRange:
    total = counts.sum()
    if total == 0:
        return span
    edges = np.linspace(span.low, span.high, _BIN_COUNT + 1)
    share = np.cumsum(counts) / total
    cut = (1 - _PERCENTILE / 100) / 2
    first = int(np.searchsorted(share, cut))
    last = int(np.searchsorted(share, 1 - cut))
    return TensorRange(
        low=min(0.0, float(edges[first])),
        high=max(0.0, float(edges[min(last, _BIN_COUNT - 1) + 1])),
    )


def _least_error_range(counts: npt.NDArray[np.int64], span: TensorRange) -> TensorRange:
    if counts.sum() == 0:
        return span
    centres = _centres(span)
    shares = np.linspace(1.0, _SMALLEST_CLIP, _CLIP_STEPS)
    low, high = span.low, span.high
    # One end after the other, twice: an outlier is mostly on one side only.
    for _ in range(2):
        high = min(
            (span.high * share for share in shares),
            key=lambda end: _error(centres, counts, low, end),
        )
        low = min(
            (span.low * share for share in shares),
            key=lambda end: _error(centres, counts, end, high),
        )
    return TensorRange(low=float(low), high=float(high))


def _error(
    centres: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], low: float, high: float
) -> float:
    """Return the summed squared error of rounding to the levels between low and high."""
    step = (high - low) / _LEVELS
    rounded = np.round((np.clip(centres, low, high) - low) / step) * step + low
    return float(((centres - rounded) ** 2 * counts).sum())
