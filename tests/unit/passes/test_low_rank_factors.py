"""Factors of weights: against the singular values, and against factors found by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tightfit_service.passes.low_rank_factors import (
    InputMoments,
    Matrix,
    composed,
    energy_ranks,
    factorize,
    input_moments,
    largest_ranks,
    relative_error,
)


def weights(shape: tuple[int, ...], seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).normal(size=shape)


def moments_of(size: int, seed: int = 1) -> InputMoments:
    mixing = np.random.default_rng(seed).normal(size=(size, size)) ** 3
    return InputMoments(second=mixing @ mixing.T / size + 0.01 * np.eye(size), mean=np.zeros(size))


CASES = [
    ("svd", (7, 12), [(r,) for r in range(1, 8)]),
    ("svd", (12, 7), [(r,) for r in range(1, 8)]),
    ("svd", (6, 5, 3, 3), [(r,) for r in range(1, 7)]),
    ("svd", (6, 5, 3), [(r,) for r in range(1, 7)]),
    ("spatial", (6, 5, 3, 3), [(r,) for r in range(1, 16)]),
    ("spatial", (4, 3, 5, 2), [(r,) for r in range(1, 9)]),
    ("tucker2", (6, 5, 3, 3), [(r, r) for r in range(1, 6)] + [(5, 6)]),
    ("tucker2", (6, 5, 3), [(r, r) for r in range(1, 6)] + [(5, 6)]),
]


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize(("method", "shape", "ranks"), CASES)
def test_the_error_falls_with_the_rank_to_nothing(
    method: str, shape: tuple[int, ...], ranks: list[tuple[int, ...]], with_data: bool
) -> None:
    weight = weights(shape)
    moments = moments_of(int(np.prod(shape[1:]))) if with_data else None
    errors = [
        relative_error(weight, composed(factorize(method, weight, r, moments)), moments)
        for r in ranks
    ]
    assert ranks[-1] == largest_ranks(method, shape)
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(0.0, abs=1e-10)


def test_svd_of_weights_leaves_what_the_singular_values_say() -> None:
    weight = weights((9, 14))
    values = np.linalg.svd(weight, compute_uv=False) ** 2
    for rank in (1, 4, 8):
        found = relative_error(weight, composed(factorize("svd", weight, [rank])), None)
        assert found == pytest.approx(values[rank:].sum() / values.sum(), rel=1e-9)


def test_svd_with_data_is_that_of_the_whitened_weights() -> None:
    weight, moments = weights((9, 14)), moments_of(14)
    values = np.linalg.svd(weight @ np.linalg.cholesky(moments.second), compute_uv=False) ** 2
    for rank in (1, 4, 8):
        factors = factorize("svd", weight, [rank], moments)
        found = relative_error(weight, composed(factors), moments)
        assert found == pytest.approx(values[rank:].sum() / values.sum(), rel=1e-8)


@pytest.mark.parametrize(("method", "ranks"), [("spatial", (4,)), ("tucker2", (3, 3))])
def test_data_gives_a_lower_error_of_the_output(method: str, ranks: tuple[int, ...]) -> None:
    weight = weights((8, 6, 3, 3))
    moments = moments_of(54)
    blind = composed(factorize(method, weight, ranks))
    seeing = composed(factorize(method, weight, ranks, moments))
    assert relative_error(weight, seeing, moments) < 0.9 * relative_error(weight, blind, moments)


def test_ranks_of_a_tolerance_keep_it() -> None:
    weight = weights((20, 16, 3, 3))
    moments = moments_of(144)
    tolerances = [0.01, 0.1, 0.3]
    for method in ("svd", "spatial", "tucker2"):
        found = energy_ranks(method, weight, tolerances, None)
        for ranks, tolerance in zip(found, tolerances, strict=True):
            error = relative_error(weight, composed(factorize(method, weight, ranks)), None)
            assert error <= tolerance
    for ranks, tolerance in zip(
        energy_ranks("svd", weight, tolerances, moments), tolerances, strict=True
    ):
        factors = factorize("svd", weight, ranks, moments)
        assert relative_error(weight, composed(factors), moments) <= tolerance


def test_weights_of_zero_are_factorized() -> None:
    weight = np.zeros((6, 5, 3, 3))
    for method in ("svd", "spatial", "tucker2"):
        ranks = energy_ranks(method, weight, [0.1], None)[0]
        factors = factorize(method, weight, ranks)
        assert not composed(factors).any()
        assert relative_error(weight, composed(factors), None) == 0.0


def test_moments_of_many_patches_are_their_covariance() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    rows = rng.normal(size=(20_000, 5)) @ mixing + 3.0
    found = input_moments(len(rows), rows.sum(0), rows.T @ rows, centred=True)
    np.testing.assert_allclose(found.second, np.cov(rows.T, bias=True), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(found.mean, rows.mean(0))


def test_moments_of_few_patches_are_shrunk_and_invertible() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 30))
    found = input_moments(4, rows.sum(0), rows.T @ rows, centred=False)
    assert np.linalg.cond(found.second) < 1e3
    silent = input_moments(9, np.zeros(3), np.zeros((3, 3)), centred=True)
    np.testing.assert_allclose(silent.second, np.eye(3))
