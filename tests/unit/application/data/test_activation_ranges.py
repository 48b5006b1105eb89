"""Tests of activation ranges: what each method spans, and that passes are streamed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.application.data.activation_ranges import METHODS, TensorRange, calibrate
from tightfit_service.domain.errors import InvalidRequestError

Batch = Mapping[str, npt.NDArray[np.float32]]


def ranges_of(values: npt.ArrayLike, method: str, *, parts: int = 4) -> TensorRange:
    array = np.asarray(values, dtype=np.float32)

    def batches() -> Iterator[Batch]:
        for part in np.array_split(array, parts):
            yield {"x": part}

    return calibrate(batches, method=method)["x"]


def test_minmax_spans_all_values() -> None:
    assert ranges_of([-1.0, 0.5, 3.0, 2.0], "minmax") == TensorRange(low=-1.0, high=3.0)


@pytest.mark.parametrize("method", METHODS)
def test_zero_is_always_inside(method: str) -> None:
    assert ranges_of([2.0, 3.0, 4.0], method).low == 0.0
    assert ranges_of([-2.0, -3.0], method).high == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_tensor_has_its_own_range(method: str) -> None:
    assert ranges_of(np.zeros(8), method) == TensorRange(low=0.0, high=0.0)
    assert ranges_of(np.ones(8), method).high == pytest.approx(1.0, rel=1e-3)
    tiny = float(np.finfo(np.float32).tiny)
    assert ranges_of(np.full(8, tiny), method) == TensorRange(low=0.0, high=tiny)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_one_outlier_does_not_widen_the_range(method: str) -> None:
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[0] = 12.0
    found = ranges_of(values, method)
    assert found.high < 7.0
    assert found.low > -7.0


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_mse_is_never_worse_than_minmax(values: list[float]) -> None:
    array = np.asarray(values, dtype=np.float64)

    def error(span: TensorRange) -> float:
        step = (span.high - span.low) / 255
        if step == 0:
            return 0.0
        clipped = np.clip(array, span.low, span.high)
        rounded = np.round((clipped - span.low) / step) * step + span.low
        return float(((rounded - array) ** 2).sum())

    whole = ranges_of(values, "minmax", parts=1)
    # Histogram bins are an eighth of a step wide, which is all that can be lost.
    slack = len(values) * ((whole.high - whole.low) / 255) ** 2 + 1e-9
    assert error(ranges_of(values, "mse", parts=1)) <= error(whole) + slack


def test_unknown_methods_and_bad_values_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="guess") as caught:
        ranges_of([1.0], "guess")
    assert "entropy" in caught.value.remedy
    for percentile in (50.0, 100.1, float("nan")):
        with pytest.raises(InvalidRequestError) as caught:
            calibrate(list, method="percentile", percentile=percentile)
        assert caught.value.field == "quantization.percentile"
    with pytest.raises(InvalidRequestError, match="'x' has NaN"):
        ranges_of([1.0, np.nan], "minmax", parts=1)
    with pytest.raises(InvalidRequestError, match="'x' has NaN"):
        ranges_of([1.0, np.inf], "minmax", parts=1)


def test_percentile_keeps_the_share_it_is_told() -> None:
    values = np.arange(-5_000, 5_000, dtype=np.float32)

    def batches() -> Iterator[Batch]:
        yield {"x": values}

    for percentile, expected in ((90.0, 4_500), (99.0, 4_950), (100.0, 5_000)):
        found = calibrate(batches, method="percentile", percentile=percentile)["x"]
        assert found.low == pytest.approx(-expected, abs=6)
        assert found.high == pytest.approx(expected, abs=6)


def test_entropy_clips_where_levels_are_better_spent() -> None:
    rng = np.random.default_rng(0)
    bulk = np.abs(rng.normal(size=100_000))
    values = np.concatenate([bulk, rng.uniform(20.0, 40.0, size=20), np.zeros(400_000)])
    found = ranges_of(values, "entropy")
    assert found.low == 0.0
    assert 2.0 < found.high < 10.0
    both = ranges_of(rng.uniform(-1.0, 1.0, size=100_000), "entropy")
    assert both.high == pytest.approx(1.0, rel=0.02)
    assert both.low == pytest.approx(-1.0, rel=0.02)


def test_batches_are_looked_at_once_and_one_by_one() -> None:
    passes = 0
    given: list[weakref.ref[npt.NDArray[np.float32]]] = []

    def batches() -> Iterator[Batch]:
        nonlocal passes
        passes += 1
        for seed in range(5):
            values = np.random.default_rng(seed).normal(size=1_000).astype(np.float32)
            given.append(weakref.ref(values))
            yield {"x": values}
            del values
            # The caller's loop variable is the last batch that may live.
            assert sum(ref() is not None for ref in given) <= 1

    for method in METHODS:
        passes = 0
        calibrate(batches, method=method)
        assert passes == 1
