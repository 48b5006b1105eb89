"""Tests of TFLite files in each number format, mixed ones, and with several inputs and outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder, token_attention
from fakes.records import make_target
from tightfit_service.adapters.evaluation.litert_evaluator import LitertRunner, read_metadata
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.adapters.formats.tflite_export import TfliteExporter
from tightfit_service.adapters.formats.tflite_file import TfliteFile
from tightfit_service.application.ports import ExportedModel, QuantizationSettings
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.hardware import Accelerator, AcceleratorKind, NumberFormat, Runtime
from tightfit_service.graph.quantized_tensors import quantized_tensors
from tightfit_service.graph.rounding import activation_scale, centred
from tightfit_service.graph.structure import graph_inputs

pytestmark = pytest.mark.slow
Type = schema.TensorType
EDGE_TPU = Accelerator(
    kind=AcceleratorKind.EDGE_TPU, name="Edge TPU", tops={NumberFormat.INT8: 4.0}
)


def samples_for(model: ModelProto) -> Samples:
    rng = np.random.default_rng(0)
    names = graph_inputs(model)
    arrays = {
        value.name: rng.normal(
            size=(48, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))
        ).astype(np.float32)
        for value in model.graph.input
    }
    others = {name: StoredInput(stored=arrays[name]) for name in names[1:]}
    first = names[0] if others else ""
    return Samples(stored=arrays[names[0]], labels=None, input_name=first, others=others)


def export(model: ModelProto, **settings: object) -> ExportedModel:
    return TfliteExporter().export(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(**settings),  # type: ignore[arg-type]
        metadata={"labels": "cat,dog"},
    )


def weight_types(file: TfliteFile, name: str = "CONV_2D") -> list[int]:
    tensors = file.graph.tensors
    return [int(tensors[int(item.inputs[1])].type) for item in file.operators(name)]


@pytest.mark.parametrize(
    ("number_format", "weights", "activations", "biases", "limit"),
    [
        (NumberFormat.FLOAT32, Type.FLOAT32, Type.FLOAT32, Type.FLOAT32, 1e-9),
        (NumberFormat.FLOAT16, Type.FLOAT32, Type.FLOAT32, Type.FLOAT32, 1e-5),
        (NumberFormat.INT16X8, Type.INT8, Type.INT16, Type.INT64, 1e-3),
        (NumberFormat.INT8, Type.INT8, Type.INT8, Type.INT32, 1e-2),
        (NumberFormat.INT4, Type.INT4, Type.INT8, Type.INT32, 5e-2),
    ],
)
def test_each_format_in_its_types(
    number_format: NumberFormat, weights: int, activations: int, biases: int, limit: float
) -> None:
    found = export(NETWORKS["depthwise"](0), number_format=number_format, method="minmax")
    assert found.number_format is number_format
    assert found.parity["noise_ratio"] < limit
    assert (found.notes, found.format_notes) == ((), ())
    file = TfliteFile(found.data)
    tensors = file.graph.tensors
    for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        assert set(weight_types(file, name)) == {weights}
        for item in file.operators(name):
            assert tensors[int(item.inputs[2])].type == biases
    ends = [*file.graph.inputs, *file.graph.outputs]
    assert {tensors[item].type for item in ends} == {activations}
    names = Counter(file.operator_name(item) for item in file.graph.operators)
    assert names["QUANTIZE"] == 0
    assert bool(names["DEQUANTIZE"]) is (number_format is NumberFormat.FLOAT16)
    if number_format is NumberFormat.FLOAT16:
        stored = [tensors[int(item.inputs[0])].type for item in file.operators("DEQUANTIZE")]
        assert set(stored) == {Type.FLOAT16}


def test_fewer_bits_make_smaller_files() -> None:
    model = NETWORKS["residual"](0)
    formats = (NumberFormat.FLOAT32, NumberFormat.FLOAT16, NumberFormat.INT8, NumberFormat.INT4)
    sizes = [len(export(model, number_format=item).data) for item in formats]
    assert sizes == sorted(sizes, reverse=True)


def test_every_node_has_the_format_asked_for() -> None:
    model = NETWORKS["residual"](0)
    found = export(
        model,
        node_formats={
            "a.conv1": NumberFormat.FLOAT32,
            "a.conv2": NumberFormat.INT16X8,
            "b.conv2": NumberFormat.INT4,
        },
    )
    file = TfliteFile(found.data)
    tensors = file.graph.tensors
    ends = [(*item.inputs[:2], item.outputs[0]) for item in file.operators("CONV_2D")]
    kinds = {tuple(int(tensors[int(index)].type) for index in item) for item in ends}
    assert kinds == {
        (Type.INT8, Type.INT8, Type.INT8),
        (Type.FLOAT32, Type.FLOAT32, Type.FLOAT32),
        (Type.INT16, Type.INT8, Type.INT16),
        (Type.INT8, Type.INT4, Type.INT8),
    }
    moved = Counter(file.operator_name(item) for item in file.graph.operators)
    assert (moved["DEQUANTIZE"], moved["QUANTIZE"]) == (1, 2)
    assert found.parity["noise_ratio"] < 0.05


def test_the_first_node_in_float_takes_a_float_input() -> None:
    found = export(NETWORKS["residual"](0), node_formats={"stem": NumberFormat.FLOAT32})
    file = TfliteFile(found.data)
    assert file.graph.tensors[file.graph.inputs[0]].type == Type.FLOAT32
    assert file.graph.tensors[file.graph.outputs[0]].type == Type.INT8


def test_scales_are_those_that_training_simulates() -> None:
    model = NETWORKS["residual"](0)
    listed = quantized_tensors(model)
    assert "a.relu_out" in listed
    found = TfliteExporter().export(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(),
        metadata={},
        ranges={name: (-1.0 - place, 2.0 + place) for place, name in enumerate(listed)},
    )
    file = TfliteFile(found.data)
    scales = set()
    for operator in file.graph.operators:
        for item in (*operator.inputs, *operator.outputs):
            if file.constant(int(item)) is None:
                details = file.graph.tensors[int(item)].quantization
                scales.add((float(details.scale[0]), int(details.zeroPoint[0])))
    expected = {
        (scale.scale, scale.zero_point)
        for place in range(len(listed))
        for scale in [activation_scale(-1.0 - place, 2.0 + place, bits=8)]
    }
    assert scales <= expected
    # The flattening behind the mean has no operator of its own.
    assert len(scales) == len(expected) - 1


def test_what_a_product_of_activations_reads_second_has_zero_point_0() -> None:
    model = token_attention()
    found = export(model)
    file = TfliteFile(found.data)
    products = file.operators("BATCH_MATMUL")
    assert len(products) == 2
    for operator in products:
        first, second = (file.graph.tensors[int(item)].quantization for item in operator.inputs[:2])
        assert int(first.zeroPoint[0]) != 0
        assert int(second.zeroPoint[0]) == 0
    assert found.parity["noise_ratio"] < 1e-2
    wide = export(model, number_format=NumberFormat.INT16X8)
    assert wide.parity["noise_ratio"] < 1e-3


def test_ranges_of_training_are_centred_once() -> None:
    model = token_attention()
    low, high = centred(-1.0, 3.0)
    found = TfliteExporter().export(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(),
        metadata={},
        ranges={"value_out": (low, high)},
    )
    file = TfliteFile(found.data)
    value = file.operators("BATCH_MATMUL")[1].inputs[1]
    scale = file.graph.tensors[int(value)].quantization.scale
    assert float(scale[0]) == activation_scale(low, high, bits=8).scale


@pytest.mark.long
def test_corrected_biases_leave_less_error_on_average() -> None:
    model = NETWORKS["residual"](0)
    feeds = {graph_inputs(model)[0]: samples_for(model).inputs(slice(0, 48))}
    expected = run_feeds(model.SerializeToString(), feeds)[0]

    def mean_error(*, bias_correction: bool) -> float:
        found = export(model, number_format=NumberFormat.INT4, bias_correction=bias_correction)
        outputs = LitertRunner(found.data, threads=1).run(feeds)[0]
        return float(np.abs((outputs - expected).mean(axis=0)).mean())

    assert mean_error(bias_correction=True) < 0.8 * mean_error(bias_correction=False)


def test_what_has_no_kernel_is_named() -> None:
    found = export(NETWORKS["upsampling"](0), number_format=NumberFormat.INT4)
    assert "in int8 for want of a kernel in int4: up" in found.format_notes


def test_layers_that_are_zero_throughout_run() -> None:
    b = Builder()
    x = b.conv("stem", b.input("x", (3, 8, 8)), 3, 8)
    pooled = b.node("pooled", "ReduceMean", [x], axes=[2, 3], keepdims=1)
    squeezed = b.conv("squeeze", pooled, 8, 4, kernel=1)
    b.constants["squeeze.b"] = np.full(4, -1e3, np.float32)
    gate = b.node("gate", "Sigmoid", [b.conv("excite", squeezed, 4, 8, kernel=1, relu=False)])
    model = b.model({b.head(b.node("scaled", "Mul", [x, gate]), 8): (5,)})
    found = export(model)
    file = TfliteFile(found.data)
    scales = [
        float(file.graph.tensors[int(item)].quantization.scale[0])
        for operator in file.graph.operators
        for item in operator.outputs
    ]
    assert min(scales) > 1e-6
    assert found.parity["noise_ratio"] < 1e-2


def test_hard_swish_is_spelled_out_for_16_bits() -> None:
    found = export(NETWORKS["squeeze_excite"](0), number_format=NumberFormat.INT16X8)
    file = TfliteFile(found.data)
    names = Counter(file.operator_name(item) for item in file.graph.operators)
    assert {"HARD_SWISH", "QUANTIZE", "DEQUANTIZE"}.isdisjoint(names)
    assert (found.notes, found.format_notes) == ((), ())
    assert found.parity["noise_ratio"] < 1e-3


@pytest.mark.parametrize(
    ("runtime", "accelerator", "is_spelled"),
    [
        ("LiteRT", None, True),
        ("tflm", None, False),
        ("LiteRT", EDGE_TPU, False),
        ("", None, False),
    ],
)
def test_hard_swish_is_spelled_out_where_a_table_is_made_of_it(
    runtime: str, accelerator: Accelerator | None, *, is_spelled: bool
) -> None:
    model = NETWORKS["squeeze_excite"](0)
    target = replace(make_target(), runtime=Runtime(name=runtime), accelerator=accelerator)
    found = TfliteExporter().export(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(),
        metadata={},
        target=target if runtime else None,
    )
    assert bool(TfliteFile(found.data).operators("HARD_SWISH")) is not is_spelled
    assert found.parity["noise_ratio"] < 1e-2


def test_a_squared_difference_is_the_square_of_the_difference_that_there_is() -> None:
    b = Builder()
    x = b.input("x", (6, 16))
    mean = b.node("mean", "ReduceMean", [x], axes=[2], keepdims=1)
    gap = b.node("gap", "Sub", [x, mean])
    square = b.node("square", "Pow", [gap, b.constant("two", 2.0, dtype=np.float32)])
    spread = b.node("spread", "ReduceMean", [square], axes=[2], keepdims=1)
    model = b.model({b.node("scaled", "Mul", [gap, spread]): (6, 16)})
    file = TfliteFile(export(model).data)
    names = Counter(file.operator_name(item) for item in file.graph.operators)
    assert (names["SUB"], names["SQUARED_DIFFERENCE"]) == (1, 0)


def test_a_prelu_of_one_slope_is_a_leaky_relu() -> None:
    def operators(slopes: np.ndarray) -> Counter[str]:
        b = Builder()
        x = b.conv("stem", b.input("x", (3, 8, 8)), 3, 4, relu=False)
        slope = b.constant("slope", slopes.reshape(4, 1, 1), dtype=np.float32)
        model = b.model({b.node("act", "PRelu", [x, slope]): (4, 8, 8)})
        found = export(model)
        assert found.parity["noise_ratio"] < 1e-2
        file = TfliteFile(found.data)
        return Counter(file.operator_name(item) for item in file.graph.operators)

    assert operators(np.full(4, 0.25)) == {"CONV_2D": 1, "LEAKY_RELU": 1}
    assert "LEAKY_RELU" not in operators(np.array([0.25, 0.5, 0.1, 0.2]))


def test_several_inputs_and_outputs_keep_names_and_order() -> None:
    model = NETWORKS["several_outputs"](0)
    found = export(model)
    runner = LitertRunner(found.data, threads=1)
    assert runner.input_names == graph_inputs(model)
    facts = read_metadata(found.data)
    assert facts["labels"] == "cat,dog"
    assert facts["input_layout"].count(",") == len(runner.input_names) - 1
    file = TfliteFile(found.data)
    names = [file.graph.tensors[item].name.decode() for item in file.graph.outputs]
    assert names == [value.name for value in model.graph.output]
    samples = samples_for(model)
    feeds = samples.feeds(slice(0, 16), graph_inputs(model))
    expected = run_feeds(model.SerializeToString(), feeds)
    for ours, theirs in zip(runner.run(feeds), expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).mean() < 0.1 * theirs.std()


def test_maps_come_out_channels_last_and_are_read_as_the_graph_gives_them() -> None:
    builder = Builder()
    image = builder.input("image", (3, 8, 6))
    builder.conv("head", builder.conv("stem", image, 3, 8), 8, 5, kernel=1, relu=False)
    model = builder.model({"head_out": (5, 8, 6)})
    found = export(model, number_format=NumberFormat.FLOAT32)
    file = TfliteFile(found.data)
    assert [file.operator_name(item) for item in file.graph.operators] == ["CONV_2D"] * 2
    assert file.shape(file.graph.outputs[0]) == (1, 8, 6, 5)
    feeds = samples_for(model).feeds(slice(0, 4), ["image"])
    expected = run_feeds(model.SerializeToString(), feeds)[0]
    assert LitertRunner(found.data, threads=1).run(feeds)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_shuffles_change_the_layout_once() -> None:
    found = export(NETWORKS["channel_shuffle"](0), number_format=NumberFormat.FLOAT32)
    file = TfliteFile(found.data)
    assert len(file.operators("TRANSPOSE")) == 1
