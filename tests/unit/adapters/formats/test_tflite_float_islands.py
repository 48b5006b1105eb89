"""What LiteRT is faster at in float32 than in 8 bits is computed so, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto

from fakes.networks import Builder
from fakes.records import make_target
from fakes.tflite_operators import OPERATORS
from tightfit_service.adapters.evaluation.litert_evaluator import LitertRunner
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.adapters.formats.tflite_spelling import multiply_powers
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.hardware import NumberFormat, Runtime

LITERT = replace(make_target(), runtime=Runtime(name="LiteRT"), accelerator=None)
SMALLER = replace(make_target(), runtime=Runtime(name="tflm"), accelerator=None)


def written(
    model: ModelProto, *, number_format: NumberFormat = NumberFormat.INT8, small: bool = False
) -> ExportedModel:
    (value,) = model.graph.input
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(16, *sizes)).astype(np.float32)
    return TfliteExporter().export(
        model.SerializeToString(),
        calibration=Samples(stored=stored, labels=None),
        settings=QuantizationSettings(number_format=number_format, method="minmax"),
        metadata={},
        target=SMALLER if small else LITERT,
    )


def names(found: ExportedModel) -> Counter[str]:
    file = TfliteFile(found.data)
    return Counter(file.operator_name(item) for item in file.graph.operators)


def probabilities(columns: int) -> ModelProto:
    """Softmax over the columns of what a dense layer makes of 16 rows."""
    b = Builder()
    x = b.node("dense", "MatMul", [b.input("x", (16, 8)), b.weight("w", (8, columns), fan_in=8)])
    x = b.node("soft", "Softmax", [x], axis=-1)
    x = b.node("out", "MatMul", [x, b.weight("v", (columns, 8), fan_in=8)])
    return b.model({x: (16, 8)})


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "is_wide"), [(32, True), (8, False)])
def test_a_softmax_of_many_numbers_stands_between_conversions(
    columns: int, *, is_wide: bool
) -> None:
    model = probabilities(columns)
    usual, ours = written(model, small=True), written(model)
    assert names(ours)["DEQUANTIZE"] == names(ours)["QUANTIZE"] == int(is_wide)
    assert names(usual)["DEQUANTIZE"] == 0
    assert ours.parity["noise_ratio"] < 1.1 * usual.parity["noise_ratio"] + 1e-6
    if is_wide:
        file = TfliteFile(ours.data)
        (soft,), (behind,) = file.operators("SOFTMAX"), file.operators("QUANTIZE")
        assert list(soft.outputs) == list(behind.inputs)
        scale = file.graph.tensors[int(behind.outputs[0])].quantization.scale[0]
        assert scale == pytest.approx(1 / 256)
        assert ours.format_notes == ("in float32, which LiteRT is faster at here: soft",)
    assert usual.format_notes == ()


def _powers(exponent: float) -> ModelProto:
    b = Builder()
    x = b.node("size", "Abs", [b.input("x", (8, 20))])
    power = b.constant("power", exponent, dtype=np.float32)
    return b.model({b.node("raised", "Pow", [x, power]): (8, 20)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exponent", "operators"),
    [(3.0, {"MUL": 2}), (0.75, {"SQRT": 2, "MUL": 1}), (1.3, {"POW": 1})],
)
def test_powers_are_products_and_roots(exponent: float, operators: dict[str, int]) -> None:
    found = written(_powers(exponent), number_format=NumberFormat.FLOAT32)
    assert names(found) == {"ABS": 1, **operators}
    assert found.parity["noise_ratio"] < 1e-9


def test_a_power_that_is_computed_stays() -> None:
    file = TfliteFile(OPERATORS["pow"]())
    before = [file.operator_name(item) for item in file.graph.operators]
    multiply_powers(file)
    assert [file.operator_name(item) for item in file.graph.operators] == before


def _normalized(norm: Callable[[Builder, str], str]) -> ModelProto:
    b = Builder()
    # the mean is many times the deviation
    x = b.node("far", "Add", [b.input("x", (6, 32)), b.constant("mean", 20.0, dtype=np.float32)])
    return b.model({norm(b, x): (6, 32)})


def _layer_norm(b: Builder, x: str) -> str:
    return b.node("norm", "LayerNormalization", [x, b.vector("s", 32, low=0.5, high=1.5)], axis=-1)


@pytest.mark.slow
def test_a_layer_normalization_scales_its_differences() -> None:
    found = written(_normalized(_layer_norm))
    counts = names(found)
    assert (counts["SUB"], counts["SQUARED_DIFFERENCE"]) == (1, 0)
    assert counts["MEAN"] == 2
    # a difference of two numbers that are 20 times as far from zero is rounded 20 times as coarsely
    assert found.parity["noise_ratio"] < 0.05
    exact = written(_normalized(_layer_norm), number_format=NumberFormat.FLOAT32)
    assert exact.parity["noise_ratio"] < 1e-9


@pytest.mark.slow
def test_summands_are_no_finer_than_kernels_take_beside_their_sum() -> None:
    b = Builder()
    x = b.conv("conv", b.input("x", (3, 8, 8)), 3, 4, relu=False)
    small = b.node("small", "Mul", [x, b.constant("tiny", 1e-5, dtype=np.float32)])
    wide = b.node("wide", "Add", [x, small])
    model = b.model(
        {b.node("y", "Add", [wide, b.constant("less", 1e-5, dtype=np.float32)]): (4, 8, 8)}
    )
    found = written(model)
    file = TfliteFile(found.data)
    for operator in file.operators("ADD"):
        *summands, total = (
            float(file.graph.tensors[int(item)].quantization.scale[0])
            for item in (*operator.inputs, *operator.outputs)
        )
        assert min(summands) >= total * 2.0**-10
    assert len(file.operators("ADD")) == 2
    assert found.parity["noise_ratio"] < 1e-3
    samples = {"x": np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)}
    assert np.isfinite(LitertRunner(found.data, threads=1).run(samples)[0]).all()
