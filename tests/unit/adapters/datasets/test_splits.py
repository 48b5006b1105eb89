"""Tests of how samples are held out and drawn."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tightfit_service.adapters.datasets.splits import drawn, halves, held_out


@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=300),
    seed=st.integers(0, 2**32),
    is_labelled=st.booleans(),
)
def test_held_out_is_a_partition_of_a_tenth(
    labels: list[int], seed: int, is_labelled: bool
) -> None:
    values = np.asarray(labels) if is_labelled else None
    stay, out = held_out(len(labels), values, np.random.default_rng(seed))
    assert sorted([*stay, *out]) == list(range(len(labels)))
    assert len(out) == max(1, round(len(labels) / 10))
    if values is not None:
        share = len(out) / len(labels)
        for label in set(labels):
            expected = share * (values == label).sum()
            assert abs((values[out] == label).sum() - expected) < 1


def test_held_out_is_capped() -> None:
    stay, out = held_out(50_000, np.zeros(50_000, dtype=np.int64), np.random.default_rng(0))
    assert (len(stay), len(out)) == (48_000, 2000)


def test_halves_are_disjoint_and_seeded() -> None:
    first, second = halves(11, np.random.default_rng(1))
    assert sorted([*first, *second]) == list(range(11))
    again, _ = halves(11, np.random.default_rng(1))
    assert np.array_equal(first, again)
    other, _ = halves(11, np.random.default_rng(2))
    assert not np.array_equal(first, other)


def test_drawn_takes_all_when_few_are_there() -> None:
    assert list(drawn(3, 10, np.random.default_rng(0))) == [0, 1, 2]
    some = drawn(100, 10, np.random.default_rng(0))
    assert len(set(some)) == 10
