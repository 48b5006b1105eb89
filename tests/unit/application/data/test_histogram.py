"""Tests of histograms that grow: no value is lost, whatever comes in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.application.data.histogram import BIN_COUNT, Histogram

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(st.lists(FLOATS, min_size=1, max_size=20), min_size=1, max_size=6))
def test_every_value_is_counted_in_bounded_memory(batches: list[list[float]]) -> None:
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, dtype=np.float32))
    values = np.concatenate([np.asarray(batch, dtype=np.float32) for batch in batches])
    assert histogram.counts.sum() == len(values)
    assert len(histogram.counts) <= BIN_COUNT
    assert histogram.low == min(0.0, values.min())
    assert histogram.high == max(0.0, values.max())
    assert histogram.magnitudes().sum() == len(values)


def test_late_outliers_merge_bins_and_keep_half_the_resolution() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=20_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    fine = histogram.width
    histogram.add(np.asarray([37.0, -11.0], dtype=np.float32))
    assert histogram.width > fine
    assert len(histogram.counts) >= BIN_COUNT // 2
    expected, _ = np.histogram(np.append(values, [37.0, -11.0]), bins=histogram.edges)
    # Values on an edge may fall on either side in float32.
    assert np.abs(np.cumsum(expected) - np.cumsum(histogram.counts)).max() <= 8


def test_zeros_seen_before_anything_else_stay_at_zero() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(5, dtype=np.float32))
    assert histogram.is_flat
    histogram.add(np.asarray([-1.0, 3.0], dtype=np.float32))
    assert not histogram.is_flat
    at_zero = np.flatnonzero(histogram.edges <= 0.0).max()
    assert histogram.counts[at_zero] == 5
    assert histogram.edges[at_zero] == pytest.approx(0.0)
