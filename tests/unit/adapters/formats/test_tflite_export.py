"""Tests of TFLite export: operators, number formats, layout, size, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from unittest.mock import Mock

import litert_torch
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder
from tightfit_service.adapters.evaluation.litert_evaluator import LitertEvaluator, read_metadata
from tightfit_service.adapters.evaluation.onnxruntime_evaluator import OnnxRuntimeEvaluator
from tightfit_service.adapters.formats.tflite_convert import is_channels_last
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidRequestError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import ModelFormat, NumberFormat

FLOAT = QuantizationSettings(number_format=NumberFormat.FLOAT32)
INT8 = QuantizationSettings()
EXPORTER = TfliteExporter()


def samples_for(model: ModelProto) -> Samples:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    stored = np.random.default_rng(0).normal(size=(48, *shape)).astype(np.float32)
    return Samples(stored=stored, labels=None)


def exported(model: ModelProto, settings: QuantizationSettings) -> ExportedModel:
    return EXPORTER.export(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=settings,
        metadata={"recipe": "abc"},
    )


def operators(found: ExportedModel) -> Counter[str]:
    file = TfliteFile(found.data)
    return Counter(file.operator_name(item) for item in file.graph.operators)


def statistics(builder: Builder) -> list[str]:
    """Scale, shift, mean and variance of six channels."""
    bounds = {"s": (0.5, 2.0), "b": (-1.0, 1.0), "m": (-1.0, 1.0), "v": (0.5, 2.0)}
    return [builder.vector(name, 6, low=low, high=high) for name, (low, high) in bounds.items()]


@pytest.mark.slow
def test_int8_file_of_a_residual_network() -> None:
    """One export, looked at from all sides: conversions take seconds."""
    model = NETWORKS["residual"](0)
    found = exported(model, INT8)
    assert (found.format, found.number_format) == (ModelFormat.TFLITE, NumberFormat.INT8)
    assert (found.notes, found.format_notes) == ((), ())
    assert found.parity["noise_ratio"] < 0.01
    counts = operators(found)
    assert set(counts) <= {"CONV_2D", "ADD", "PAD", "MEAN", "FULLY_CONNECTED"}

    file = TfliteFile(found.data)
    ends = [*file.graph.inputs, *file.graph.outputs]
    assert {file.graph.tensors[item].type for item in ends} == {schema.TensorType.INT8}
    names = [file.graph.tensors[item].name.decode() for item in ends]
    assert names == [model.graph.input[0].name, model.graph.output[0].name]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    assert file.shape(file.graph.inputs[0]) == (1, *shape[1:], shape[0])
    for name, part in (("CONV_2D", "channel"), ("FULLY_CONNECTED", "layer")):
        for operator in file.operators(name):
            weights, bias = (file.graph.tensors[item] for item in operator.inputs[1:3])
            assert (weights.type, bias.type) == (schema.TensorType.INT8, schema.TensorType.INT32)
            scales = weights.shape[0] if part == "channel" else 1
            assert len(weights.quantization.scale) == scales
    versions = {
        file.operator_name(item): file.model.operatorCodes[item.opcodeIndex].version
        for item in file.graph.operators
    }
    assert versions["CONV_2D"] == 3
    assert versions["FULLY_CONNECTED"] >= 4

    entry = next(item for item in file.model.metadata if item.name == b"tightfit")
    facts = json.loads(bytes(bytearray(file.model.buffers[entry.buffer].data)))
    assert facts == {"input_layout": "NHWC", "output_layout": "as-is", "recipe": "abc"}
    assert read_metadata(found.data) == facts
    inputs = samples_for(model).inputs(slice(0, 16))
    ours = LitertEvaluator().outputs(found.data, inputs)
    theirs = OnnxRuntimeEvaluator().outputs(model.SerializeToString(), inputs)
    assert np.abs(ours - theirs).max() < 0.2 * theirs.std()


@pytest.mark.slow
def test_float_file_of_a_flattening_network_has_no_layout_changes() -> None:
    model = NETWORKS["plain_cnn"](0)
    found = EXPORTER.export(
        model.SerializeToString(), calibration=None, settings=FLOAT, metadata={}
    )
    assert "TRANSPOSE" not in operators(found)
    assert found.parity["max_abs_diff"] < 1e-4
    assert found.number_format is NumberFormat.FLOAT32


@pytest.mark.slow
def test_a_norm_that_no_product_stands_before_is_one_operator_with_its_activation() -> None:
    builder = Builder(seed=4)
    image = builder.input("image", (6, 8, 8))
    pooled = builder.node("pool", "MaxPool", [image], kernel_shape=[2, 2], strides=[2, 2])
    norm = builder.node("norm", "BatchNormalization", [pooled, *statistics(builder)])
    builder.conv("conv", builder.node("relu", "Relu", [norm]), 6, 4, relu=False)
    model = builder.model({"conv_out": (4, 4, 4)})
    found = exported(model, INT8)
    assert found.parity["noise_ratio"] < 0.001
    counts = operators(found)
    assert counts["DEPTHWISE_CONV_2D"] == 1
    assert not {"MUL", "ADD", "RELU"} & set(counts)


@pytest.mark.slow
def test_a_norm_of_what_is_no_image_is_a_product_and_a_sum() -> None:
    builder = Builder(seed=4)
    vector = builder.input("vector", (6,))
    builder.node("norm", "BatchNormalization", [vector, *statistics(builder)])
    found = EXPORTER.export(
        builder.model({"norm_out": (6,)}).SerializeToString(),
        calibration=None,
        settings=FLOAT,
        metadata={},
    )
    assert found.parity["max_abs_diff"] < 1e-5
    assert operators(found) == {"MUL": 1, "ADD": 1}


@pytest.mark.slow
def test_padded_max_pools_keep_a_finite_range() -> None:
    builder = Builder(seed=3)
    image = builder.input("image", (3, 9, 9))
    stem = builder.conv("stem", image, 3, 8, relu=False)
    pooled = builder.node(
        "pool", "MaxPool", [stem], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    mean = builder.node("gap", "GlobalAveragePool", [pooled])
    flat = builder.node("flat", "Flatten", [mean])
    weight = builder.weight("fc.w", (4, 8), fan_in=8)
    builder.node("fc", "Gemm", [flat, weight], transB=1)
    found = exported(builder.model({"fc_out": (4,)}), INT8)
    assert found.parity["noise_ratio"] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op_type", "sizes", "shape"),
    [
        ("Tile", (1, 1, 5, 6), (4, 5, 6)),
        ("Expand", (1, 4, 5, 6), (4, 5, 6)),
        ("Tile", (1, 2, 5, 1), (8, 5, 1)),
    ],
)
def test_images_are_repeated_along_their_own_axes(
    op_type: str, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    builder = Builder(0)
    image = builder.conv("first", builder.input("image", (3, 5, 6)), 3, 4)
    mean = builder.node("mean", "GlobalAveragePool", [image])
    copies = builder.node("copies", op_type, [mean, builder.ints("sizes", sizes)])
    last = builder.conv("last", copies, shape[0], 2)
    model = builder.model({last: (2, *shape[1:])})
    assert exported(model, FLOAT).parity["noise_ratio"] < 1e-4


def test_settings_that_no_file_expresses() -> None:
    model = NETWORKS["mlp"](0)
    with pytest.raises(UnsupportedError, match="bfloat16"):
        exported(model, QuantizationSettings(number_format=NumberFormat.BFLOAT16))
    with pytest.raises(InvalidRequestError, match="no node 'fc9'"):
        exported(model, QuantizationSettings(node_formats={"fc9": NumberFormat.FLOAT32}))
    with pytest.raises(InvalidRequestError, match="'guess'"):
        exported(model, QuantizationSettings(method="guess"))


def test_int8_needs_samples() -> None:
    model = NETWORKS["mlp"](0)
    for calibration in (None, Samples(stored=np.zeros((0, 6), np.float32), labels=None)):
        with pytest.raises(InvalidDatasetError, match="calibration samples"):
            EXPORTER.export(
                model.SerializeToString(), calibration=calibration, settings=INT8, metadata={}
            )


def test_calibration_samples_that_are_not_finite_are_refused_by_their_index() -> None:
    model = NETWORKS["mlp"](0)
    values = samples_for(model).inputs(slice(None))
    values[41, 3] = np.nan
    with pytest.raises(InvalidDatasetError, match="sample 41 has NaN") as caught:
        EXPORTER.export(
            model.SerializeToString(),
            calibration=Samples(stored=values, labels=None),
            settings=INT8,
            metadata={},
        )
    assert caught.value.field == "calibration"


@pytest.mark.slow
def test_calibration_samples_that_saturate_are_told() -> None:
    model = NETWORKS["mlp"](0)
    values = np.clip(samples_for(model).inputs(slice(None)), -9, 0.1)
    found = EXPORTER.export(
        model.SerializeToString(),
        calibration=Samples(stored=values, labels=None),
        settings=INT8,
        metadata={},
    )
    assert any("saturates" in note for note in found.notes)


def test_only_images_that_the_graph_takes_channels_first_are_turned() -> None:
    assert is_channels_last(NETWORKS["residual"](0), "input")
    assert not is_channels_last(NETWORKS["mlp"](0), "input")
    builder = Builder()
    image = builder.input("image", (4, 4, 3))
    turned = builder.node("turn", "Transpose", [image], perm=[0, 3, 1, 2])
    builder.node("gap", "GlobalAveragePool", [turned])
    assert not is_channels_last(builder.model({"gap_out": (3, 1, 1)}), "image")


@pytest.mark.slow
def test_ranges_that_training_fixed_replace_calibrated_ones() -> None:
    model = NETWORKS["mlp"](0)
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    found = EXPORTER.export(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=INT8,
        metadata={},
        ranges={name: (0.0, 51.0), "no such tensor": (0.0, 1.0)},
    )
    file = TfliteFile(found.data)
    first = file.operators("FULLY_CONNECTED")[0]
    quantization = file.graph.tensors[int(first.outputs[0])].quantization
    assert quantization.scale[0] == pytest.approx(51.0 / 255)
    assert quantization.zeroPoint[0] == -128


@pytest.mark.slow
def test_a_graph_is_converted_once_for_all_its_number_formats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversions = Mock(side_effect=litert_torch.convert)
    monkeypatch.setattr(litert_torch, "convert", conversions)
    model = NETWORKS["mlp"](77)
    sizes = [len(exported(model, settings).data) for settings in (FLOAT, INT8, FLOAT)]
    assert conversions.call_count == 1
    # what was done to one file is not in the next
    assert sizes[0] == sizes[2] != sizes[1]
