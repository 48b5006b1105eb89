"""Histograms of streamed values, whose range grows as values come."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BIN_COUNT = 4096
"""Bins held at most; at least half of them span the values, 2048 as onnxruntime's calibrators have."""
_SMALLEST = 1e-30
"""Smaller than this, float32 has no room to tell bins apart; such values are zero in all but name."""


class Histogram:
    """Counts of values in bins of equal width with an edge at zero.

    A value outside the range doubles the width as often as it takes: bins merge in pairs, and no
    count is ever split. Not safe for several threads.

    Attributes:
        low: Least of the values and 0.
        high: Greatest of the values and 0.
        width: Width of a bin; 0 as long as no value differs from zero.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.width = 0.0
        self._first = 0
        self._counts = np.zeros(1, dtype=np.int64)

    @property
    def is_flat(self) -> bool:
        """Whether all values are zero, or as good as that."""
        return self.width == 0.0

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Values per bin, in ascending order."""
        return self._counts

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Edges of the bins, one more than there are bins."""
        return np.arange(self._first, self._first + len(self._counts) + 1, dtype=float) * self.width

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """Middles of the bins."""
        return self.edges[:-1] + self.width / 2

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count values, which must be finite, of any shape."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        span = self.high - self.low
        if span <= _SMALLEST:
            self._counts[-self._first] += flat.size
            return
        if self.is_flat:
            self.width = span / (BIN_COUNT - 2)
        self._make_room()
        # np.histogram searches edges, which is several times slower for equal bins.
        place = np.floor(flat * (1 / self.width)).astype(np.int32) - self._first
        np.clip(place, 0, len(self._counts) - 1, out=place)
        self._counts += np.bincount(place, minlength=len(self._counts))

    def magnitudes(self) -> npt.NDArray[np.int64]:
        """Return the counts of absolute values in bins of the same width, from zero up."""
        negative = self._counts[: -self._first][::-1]
        positive = self._counts[-self._first :]
        result = np.zeros(max(len(negative), len(positive)), dtype=np.int64)
        result[: len(negative)] += negative
        result[: len(positive)] += positive
        return result

    def _make_room(self) -> None:
        """Widen bins until all fit, and lay them out from the least to the greatest value."""
        while True:
            first = math.floor(self.low / self.width)
            last = math.floor(self.high / self.width)
            if last - first < BIN_COUNT:
                break
            self._merge_pairs()
        counts = np.zeros(last - first + 1, dtype=np.int64)
        start = self._first - first
        counts[start : start + len(self._counts)] = self._counts
        self._first, self._counts = first, counts

    def _merge_pairs(self) -> None:
        counts = np.concatenate(
            [
                np.zeros(self._first % 2, dtype=np.int64),
                self._counts,
                np.zeros((self._first % 2 + len(self._counts)) % 2, dtype=np.int64),
            ]
        )
        self._first //= 2
        self._counts = counts.reshape(-1, 2).sum(axis=1)
        self.width *= 2
