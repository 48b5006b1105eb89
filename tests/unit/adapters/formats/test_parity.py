"""Tests of the comparison of outputs: which differences are noise and which are a broken file."""

from __future__ import annotations

import numpy as np
import pytest

from tightfit_service.adapters.formats.parity import check_outputs, comparison_inputs
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import ParityError

RNG = np.random.default_rng(0)
EXPECTED = RNG.normal(size=(64, 10)).astype(np.float32)


def test_equal_outputs_have_no_difference() -> None:
    figures = check_outputs([EXPECTED], [EXPECTED], is_quantized=False)
    assert figures == {
        "max_abs_diff": 0.0, "mean_abs_diff": 0.0, "noise_ratio": 0.0, "top1_agreement": 1.0,
    }  # fmt: skip


def test_figures_are_relative_to_the_spread() -> None:
    noisy = EXPECTED * 100 + RNG.choice([-1.0, 1.0], EXPECTED.shape).astype(np.float32)
    figures = check_outputs([EXPECTED * 100], [noisy], is_quantized=True)
    assert figures["mean_abs_diff"] == pytest.approx(0.01, rel=0.05)
    assert figures["noise_ratio"] == pytest.approx(1e-4, rel=0.1)


def test_int8_noise_is_accepted() -> None:
    step = np.float32(0.05)
    rounded = np.round(EXPECTED / step) * step
    assert check_outputs([EXPECTED], [rounded], is_quantized=True)["top1_agreement"] > 0.9


@pytest.mark.parametrize(
    "broken",
    [
        np.zeros_like(EXPECTED),
        np.full_like(EXPECTED, EXPECTED.mean()),
        np.roll(EXPECTED, 1, axis=0),
        -EXPECTED,
        np.where(EXPECTED > 2, np.nan, EXPECTED),
        np.where(EXPECTED > 2, np.inf, EXPECTED),
        EXPECTED[:, :9],
        EXPECTED[:32],
    ],
    ids=["zero", "constant", "other-samples", "sign", "nan", "inf", "classes", "samples"],
)
@pytest.mark.parametrize("is_quantized", [True, False])
def test_broken_files_are_refused(broken: np.ndarray, is_quantized: bool) -> None:
    with pytest.raises(ParityError) as caught:
        check_outputs([EXPECTED], [broken.astype(np.float32)], is_quantized=is_quantized)
    assert caught.value.remedy


def test_float_files_must_agree_to_rounding() -> None:
    check_outputs([EXPECTED], [EXPECTED * np.float32(1 + 1e-5)], is_quantized=False)
    with pytest.raises(ParityError, match="differs by"):
        check_outputs([EXPECTED], [EXPECTED * np.float32(1.01)], is_quantized=False)


def test_outputs_that_never_vary_are_compared_by_size() -> None:
    constant = np.full((8, 1), 5.0, dtype=np.float32)
    check_outputs([constant], [constant + np.float32(1e-3)], is_quantized=True)
    with pytest.raises(ParityError):
        check_outputs([constant], [constant * 2], is_quantized=True)


def test_a_missing_output_is_refused() -> None:
    with pytest.raises(ParityError, match="1 outputs, the graph 2"):
        check_outputs([EXPECTED, EXPECTED], [EXPECTED], is_quantized=True)


def test_comparison_inputs_come_from_calibration_or_a_seed() -> None:
    stored = np.arange(200, dtype=np.float32).reshape(100, 2)
    chosen = comparison_inputs(Samples(stored=stored, labels=None), (1, 2))
    assert len(chosen) == 64
    assert (chosen[0, 0], chosen[-1, 0]) == (0.0, 198.0)
    made = comparison_inputs(None, (1, 3, 4, 4))
    assert made.shape == (16, 3, 4, 4)
    assert np.array_equal(made, comparison_inputs(None, (1, 3, 4, 4)))
