"""Intervals and accuracies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.domain.quantities import Interval, wilson_accuracy


def test_wilson_interval_of_the_textbook_case() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662 at 95 %.
    accuracy = wilson_accuracy(81, 263)
    assert accuracy.low == pytest.approx(0.2553, abs=5e-5)
    assert accuracy.high == pytest.approx(0.3662, abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_stays_in_bounds(case: tuple[int, int]) -> None:
    correct, count = case
    accuracy = wilson_accuracy(correct, count)
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    assert accuracy.high - accuracy.low > 0


def test_an_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson_accuracy(0, 0)


def test_intervals_scale_as_a_whole() -> None:
    interval = Interval.relative(10.0, low_ratio=0.8, high_ratio=1.3)
    assert interval.scaled(2.0) == Interval(value=20.0, low=16.0, high=26.0)
    assert Interval.exact(3.0) == Interval(value=3.0, low=3.0, high=3.0)
