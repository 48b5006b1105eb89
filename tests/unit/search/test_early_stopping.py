"""Successive halving keeps the best and what cannot be told from them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.domain.quantities import wilson_accuracy
from tightfit_service.search.early_stopping import Screened, SuccessiveHalving, is_worse


def screened(index: int, correct: int, *, of: int = 1000) -> Screened:
    return Screened(index=index, accuracy=wilson_accuracy(correct, of))


def test_clear_losers_are_dropped_and_the_best_come_first() -> None:
    rung = [screened(0, 500), screened(1, 900), screened(2, 600), screened(3, 800)]
    assert SuccessiveHalving().survivors(rung) == (1, 3)
    assert SuccessiveHalving(reduction_factor=4).survivors(rung) == (1,)
    assert SuccessiveHalving(least_survivors=3).survivors(rung) == (1, 3, 2)


def test_what_is_tied_stays_unless_slots_run_out() -> None:
    rung = [screened(0, 900), screened(1, 895), screened(2, 898), screened(3, 700)]
    assert SuccessiveHalving(reduction_factor=4).survivors(rung) == (0, 2, 1)
    assert SuccessiveHalving(reduction_factor=4).survivors(rung, slots=2) == (0, 2)
    assert SuccessiveHalving().survivors(rung, slots=0) == ()


def test_more_samples_tell_smaller_differences() -> None:
    assert not is_worse(wilson_accuracy(880, 1000), wilson_accuracy(900, 1000))
    assert is_worse(wilson_accuracy(8800, 10_000), wilson_accuracy(9000, 10_000))


def test_nothing_gives_nothing_and_ties_go_to_the_earlier() -> None:
    assert SuccessiveHalving().survivors([]) == ()
    assert SuccessiveHalving().survivors([screened(5, 10), screened(2, 10)], slots=1) == (2,)


@given(
    corrects=st.lists(st.integers(0, 200), min_size=1, max_size=12),
    factor=st.floats(1.01, 8.0),
    least=st.integers(1, 4),
)
def test_survivors_are_a_prefix_of_the_ranking(
    corrects: list[int], factor: float, least: int
) -> None:
    rung = [screened(index, correct, of=200) for index, correct in enumerate(corrects)]
    survivors = SuccessiveHalving(reduction_factor=factor, least_survivors=least).survivors(rung)
    ranking = sorted(range(len(corrects)), key=lambda index: (-corrects[index], index))
    assert list(survivors) == ranking[: len(survivors)]
    assert len(survivors) >= min(least, len(corrects))


@pytest.mark.parametrize(("factor", "least"), [(1.0, 1), (0.5, 1), (2.0, 0)])
def test_rules_that_keep_everything_or_nothing_are_refused(factor: float, least: int) -> None:
    with pytest.raises(ValueError, match="reduction_factor"):
        SuccessiveHalving(reduction_factor=factor, least_survivors=least)
