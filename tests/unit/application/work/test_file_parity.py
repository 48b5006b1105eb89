"""Tests of the comparison of outputs: which differences are noise and which are a broken file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import FloatArray, ModelInputs, Samples
from tightfit_service.application.work.file_parity import check_outputs, held_out, noise_limit_of
from tightfit_service.domain.errors import ParityError
from tightfit_service.domain.hardware import NumberFormat
from tightfit_service.domain.quantities import Accuracy

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


class Runner:
    """Answers with what it is given, times a factor, and noise."""

    def __init__(self, *, factor: float = 1.0, noise: float = 0.0) -> None:
        self.factor, self.noise = factor, noise
        self.seen: list[np.ndarray] = []

    def outputs(self, data: bytes, inputs: ModelInputs) -> FloatArray:
        assert isinstance(inputs, Mapping)
        (values,) = inputs.values()
        self.seen.append(values)
        random = np.random.default_rng(0).normal(size=values.shape)
        return (self.factor * values + self.noise * random).astype(np.float32)

    def evaluate(self, data: bytes, samples: Samples) -> Accuracy:
        raise AssertionError("nobody asks")


def compared(runner: Runner, number_format: NumberFormat) -> Mapping[str, float]:
    rng = np.random.default_rng(1)
    stored = rng.normal(size=(200, 10)).astype(np.float32)
    return held_out(
        graph=b"graph",
        of_graph=Runner(),
        file=b"file",
        of_file=runner,
        samples=Samples(stored=stored, labels=None),
        names=["x"],
        settings=QuantizationSettings(number_format=number_format),
    )


def test_a_file_is_held_against_its_graph_on_samples_that_nothing_was_calibrated_on() -> None:
    runner = Runner(noise=0.2)
    figures = compared(runner, NumberFormat.INT8)
    assert figures["noise_ratio"] == pytest.approx(0.04, rel=0.2)
    (seen,) = runner.seen
    assert seen.shape == (64, 10)
    assert compared(Runner(noise=0.9), NumberFormat.INT8)["noise_ratio"] > 0.5
    for runner, number_format in (
        (Runner(noise=1.2), NumberFormat.INT8),
        (Runner(factor=-1.0), NumberFormat.INT8),
        (Runner(noise=0.2), NumberFormat.FLOAT16),
        (Runner(factor=1.01), NumberFormat.FLOAT32),
    ):
        with pytest.raises(ParityError):
            compared(runner, number_format)


def test_the_coarsest_format_in_a_file_counts() -> None:
    assert noise_limit_of(QuantizationSettings(number_format=NumberFormat.FLOAT32)) is None
    mixed = {"a": NumberFormat.INT4, "b": NumberFormat.FLOAT16}
    assert noise_limit_of(QuantizationSettings(node_formats=mixed)) == 1.0
