"""Tests of static quantization: number formats of every part, calibration, exceptions, determinism."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from fakes.networks import NETWORKS, Builder
from tightfit_service.application.data.activation_ranges import METHODS
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples, StoredInput
from tightfit_service.domain.errors import InvalidDatasetError, InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat, Runtime
from tightfit_service.graph.model_file import load_model
from tightfit_service.passes.activation_values import Observer, activations
from tightfit_service.passes.number_formats import quantizable_nodes
from tightfit_service.passes.qdq import prepared_for_qdq
from tightfit_service.passes.quantization import StaticQuantizationPass

PASS = StaticQuantizationPass()


def samples_for(model: onnx.ModelProto, count: int = 40) -> Samples:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    # Cubes have the long tails that calibration methods are there for.
    stored = (np.random.default_rng(0).normal(size=(count, *shape)) ** 3).astype(np.float32)
    return Samples(stored=stored, labels=None)


def samples_of(values: npt.NDArray[np.float32]) -> Samples:
    return Samples(stored=values, labels=None)


def quantized(name: str, **settings: Any) -> onnx.ModelProto:
    model = NETWORKS[name](0)
    result = PASS.quantize(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(**settings),
    )
    return load_model(result.graph)


def first_product(name: str) -> str:
    return quantizable_nodes(NETWORKS[name](0))[0]


def activation_types(model: onnx.ModelProto) -> set[int]:
    """Return the integer types that activations are quantized to."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {types[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}


def stored_types(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Return the element types of constant inputs by position for each quantized convolution."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, set[int]] = {"weight": set(), "bias": set()}
    for node in model.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            for part, name in zip(("weight", "bias"), node.input[1:], strict=False):
                source = makers[name].input[0] if name in makers else name
                found[part].add(constants[source])
    return found


def test_weights_are_int8_and_biases_int32() -> None:
    types = stored_types(quantized("residual"))
    assert types == {"weight": {onnx.TensorProto.INT8}, "bias": {onnx.TensorProto.INT32}}


@pytest.mark.parametrize("per_channel", [True, False])
def test_convolutions_have_a_scale_per_channel_if_told(per_channel: bool) -> None:
    model = quantized("plain_cnn", per_channel=per_channel)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            values, scale, zero = (arrays[name] for name in makers[node.input[1]].input[:3])
            assert scale.size == (values.shape[0] if per_channel else 1)
            assert not np.any(zero)


def test_softmax_and_named_nodes_stay_in_float() -> None:
    plain = NETWORKS["plain_cnn"](0)
    first = next(node.name for node in plain.graph.node if node.op_type == "Conv")
    model = quantized("plain_cnn", node_formats={first: NumberFormat.FLOAT32})
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    kept = next(node for node in model.graph.node if node.name == first)
    assert makers.get(kept.input[1]) != "DequantizeLinear"
    final = next(node for node in model.graph.node if node.op_type == "Softmax")
    assert final.output[0] in {item.name for item in model.graph.output}


def test_softmax_over_many_places_is_no_integer_kernel() -> None:
    """Its outputs span less than 1/256 each, where onnxruntime's integer kernel overflows."""
    b = Builder()
    b.input("input", (40, 6))
    b.node("scores", "MatMul", ["input", b.weight("scores.w", (6, 1), fan_in=60)])
    b.node("weights", "Softmax", ["scores_out"], axis=1)
    b.node("weighed", "Mul", ["weights_out", "input"])
    b.node("sum", "ReduceSum", ["weighed_out", b.ints("axes", [1])], keepdims=0)
    graph = b.model({b.gemm("head", "sum_out", 6, 4): (4,)}).SerializeToString()
    values = np.random.default_rng(0).normal(size=(64, 40, 6)).astype(np.float32)
    result = PASS.quantize(
        graph, calibration=samples_of(values), settings=QuantizationSettings(method="minmax")
    )
    expected, found = (
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": values})
        for data in (graph, result.graph)
    )
    assert np.mean((expected[0] - found[0]) ** 2) < 0.02 * np.var(expected[0])


@pytest.mark.parametrize("factor", [2.0, 64.0])
def test_scores_joined_with_boxes_keep_their_steps(factor: float) -> None:
    b = Builder()
    cells = b.conv("head", b.input("input", (3, 8, 8)), 3, 4, relu=False)
    cells = b.node("squashed", "Sigmoid", [cells])
    scores = b.node("split", "Split", [cells, b.ints("two", [1, 3])], outputs=2, axis=1)
    size = b.constant("size", factor, dtype=np.float32)
    boxes = b.node("scaled", "Mul", ["split_out1", size])
    model = b.model({b.node("joined", "Concat", [scores, boxes], axis=1): (4, 8, 8)})
    graph = model.SerializeToString()
    calibration = samples_for(model)
    result = PASS.quantize(graph, calibration=calibration, settings=QuantizationSettings())
    feed = {"input": calibration.inputs(slice(0, 20))}
    before, after = (
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for data in (graph, result.graph)
    )
    noise = ((before - after)[:, 0] ** 2).mean() / before[:, 0].var()
    assert noise < 0.01
    assert any("other magnitudes: joined" in note for note in result.format_notes) == (
        factor == 64.0
    )


def test_powers_keep_their_small_values_before_a_logarithm() -> None:
    b = Builder()
    b.input("input", (4, 6))
    b.node("power", "Mul", ["input", "input"])
    b.node("floor", "Add", ["power_out", b.constant("least", [1e-3], dtype=np.float32)])
    b.node("decibels", "Log", ["floor_out"])
    b.node("flat", "Flatten", ["decibels_out"])
    graph = b.model({b.gemm("head", "flat_out", 24, 4): (4,)}).SerializeToString()
    values = np.random.default_rng(0).normal(size=(64, 4, 6)).astype(np.float32) ** 3
    result = PASS.quantize(
        graph, calibration=samples_of(values), settings=QuantizationSettings(method="minmax")
    )
    assert any("logarithm" in note and "floor" in note for note in result.format_notes)
    expected, found = (
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": values})
        for data in (graph, result.graph)
    )
    assert np.mean((expected[0] - found[0]) ** 2) < 0.01 * np.var(expected[0])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_runnable_deterministic_graph(method: str) -> None:
    first, second = (quantized("depthwise", method=method) for _ in range(2))
    onnx.checker.check_model(first, full_check=True)
    assert first.SerializeToString() == second.SerializeToString()


def test_methods_differ() -> None:
    assert quantized("plain_cnn", method="minmax") != quantized("plain_cnn", method="mse")


def test_given_ranges_are_not_calibrated() -> None:
    model = NETWORKS["plain_cnn"](0)
    name = model.graph.input[0].name
    data = PASS.quantize(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(),
        ranges={name: (-2.0, 3.1)},
    )
    result = load_model(data.graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    first = next(node for node in result.graph.node if node.input[0] == name)
    assert arrays[first.input[1]] == pytest.approx(5.1 / 255)


def test_calibration_runs_in_bounded_batches() -> None:
    model = onnx.shape_inference.infer_shapes(NETWORKS["plain_cnn"](0))
    seen = list(activations(model, samples_for(model, 70)))
    name = model.graph.input[0].name
    assert [len(batch[name]) for batch in seen] == [32, 32, 6]
    assert all(value.dtype == np.float32 for value in seen[0].values())


def test_graphs_of_old_opsets_are_raised() -> None:
    builder = Builder()
    builder.gemm("fc", builder.input("x", (6,)), 6, 4)
    model = builder.model({"fc_out": (4,)}, opset=11)
    data = PASS.quantize(
        model.SerializeToString(), calibration=samples_for(model), settings=QuantizationSettings()
    )
    assert load_model(data.graph).opset_import[0].version >= 13


def test_int4_weights_are_stored_in_four_bits() -> None:
    model = quantized("residual", number_format=NumberFormat.INT4)
    types = stored_types(model)
    assert types == {"weight": {onnx.TensorProto.INT4}, "bias": {onnx.TensorProto.INT32}}
    assert activation_types(model) == {onnx.TensorProto.INT8}
    weights = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT4 and len(tensor.dims) == 4
    ]
    assert weights
    for weight in weights:
        assert len(weight.raw_data) == -(-int(np.prod(weight.dims)) // 2)


def test_int16_activations_have_int8_weights() -> None:
    model = quantized("residual", number_format=NumberFormat.INT16X8)
    assert stored_types(model)["weight"] == {onnx.TensorProto.INT8}
    assert activation_types(model) == {onnx.TensorProto.INT16}


def test_float16_nodes_leave_inputs_and_outputs_in_float32() -> None:
    model = quantized("residual", number_format=NumberFormat.FLOAT16)
    assert stored_types(model)["weight"] == {onnx.TensorProto.FLOAT16}
    ends = (*model.graph.input, *model.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2


def test_scalings_of_attention_stay_in_float32() -> None:
    """In float16, onnxruntime 1.31 fuses them into a MatMul that it does not survive."""
    b = Builder()
    x = b.input("x", (4, 6))
    scaled = b.node("scale", "Mul", [x, b.constant("root", 0.4, dtype=np.float32)])
    turned = b.node("turn", "Transpose", [x], perm=[0, 2, 1])
    b.node("scores", "MatMul", [scaled, turned])
    model = b.model({"scores_out": (4, 4)})
    result = PASS.quantize(
        model.SerializeToString(),
        calibration=None,
        settings=QuantizationSettings(number_format=NumberFormat.FLOAT16),
    )
    inferred = onnx.shape_inference.infer_shapes(load_model(result.graph))
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    nodes = {node.name: node for node in inferred.graph.node}
    assert types[nodes["scale"].output[0]] == onnx.TensorProto.FLOAT
    assert types[nodes["scores"].input[0]] == onnx.TensorProto.FLOAT16


def test_bfloat16_halves_the_weights() -> None:
    model = quantized("residual", number_format=NumberFormat.BFLOAT16)
    plain = quantized("residual", number_format=NumberFormat.FLOAT32)
    assert model.ByteSize() < 0.7 * plain.ByteSize()
    assert onnx.TensorProto.BFLOAT16 in {t.data_type for t in model.graph.initializer}


def test_a_node_takes_the_nodes_fused_into_it_along() -> None:
    """A Relu behind an int16 convolution must not fall back to int8."""
    first = first_product("plain_cnn")
    model = quantized("plain_cnn", node_formats={first: NumberFormat.INT16X8})
    node = next(node for node in model.graph.node if node.name == first)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    reader = next(n for n in model.graph.node if node.output[0] in n.input)
    assert reader.op_type == "QuantizeLinear"
    assert types[reader.input[2]] == onnx.TensorProto.INT16
    assert activation_types(model) == {onnx.TensorProto.INT8, onnx.TensorProto.INT16}


@pytest.mark.parametrize("name", ["plain_cnn", "padded_shortcut", "channels_last_head"])
def test_one_layer_in_few_bits_gives_a_file_that_loads(name: str) -> None:
    """onnxruntime 1.31 refuses standard pairs of opset 21 next to a float Slice, pool or Transpose."""
    model = NETWORKS[name](0)
    samples = samples_for(model)
    for layer in quantizable_nodes(model):
        settings = QuantizationSettings(
            number_format=NumberFormat.FLOAT32, node_formats={layer: NumberFormat.INT4}
        )
        result = PASS.quantize(model.SerializeToString(), calibration=samples, settings=settings)
        session = ort.InferenceSession(result.graph, providers=["CPUExecutionProvider"])
        assert session.get_outputs()
        domains = {node.domain for node in load_model(result.graph).graph.node}
        assert ("com.microsoft" in domains) == any("needs onnxruntime" in n for n in result.notes)


def test_int16_tensors_are_never_clipped() -> None:
    name = "plain_cnn"
    clipped, whole = (
        quantized(name, number_format=NumberFormat.INT16X8, method=method)
        for method in ("percentile", "minmax")
    )
    assert clipped.SerializeToString() == whole.SerializeToString()


@pytest.mark.parametrize("name", ["plain_cnn", "depthwise", "residual"])
def test_bias_correction_removes_the_mean_error(name: str) -> None:
    model = NETWORKS[name](0)
    samples = samples_for(model, 200)
    output = model.graph.node[-1].input[0] if name == "plain_cnn" else model.graph.output[0].name
    plain = prepared_for_qdq(model, {})
    expected = _mean(plain, samples, output)
    shifts = []
    for correction in (False, True):
        settings = QuantizationSettings(
            number_format=NumberFormat.INT4, bias_correction=correction, method="minmax"
        )
        result = PASS.quantize(model.SerializeToString(), calibration=samples, settings=settings)
        quantized_model = load_model(result.graph)
        shifts.append(np.abs(_mean(quantized_model, samples, output) - expected).mean())
    assert shifts[1] < 0.7 * shifts[0]


def _mean(model: onnx.ModelProto, samples: Samples, name: str) -> npt.NDArray[np.float64]:
    """Return the mean per channel of a tensor, read behind its QDQ pair if it has one."""
    observer = Observer(model, [name])
    feeds = next(iter(samples.feed_batches(len(samples), [model.graph.input[0].name])))[0]
    values = observer.run(feeds)[name]
    mean = values.mean(axis=(0, *range(2, values.ndim)), dtype=np.float64)
    return np.asarray(mean, dtype=np.float64)


def test_several_inputs_are_calibrated() -> None:
    model = NETWORKS["several_outputs"](0)
    rng = np.random.default_rng(0)
    image, other = (rng.normal(size=(12, c, 6, 6)).astype(np.float32) for c in (3, 1))
    samples = Samples(
        stored=image, labels=None, input_name="image", others={"other": StoredInput(stored=other)}
    )
    result = PASS.quantize(
        model.SerializeToString(), calibration=samples, settings=QuantizationSettings()
    )
    readers = [node for node in load_model(result.graph).graph.node if node.input[0] == "other"]
    assert [node.op_type for node in readers] == ["QuantizeLinear"]
    with pytest.raises(InvalidDatasetError, match="inputs"):
        PASS.quantize(
            model.SerializeToString(),
            calibration=samples_of(image),
            settings=QuantizationSettings(),
        )


def test_poor_calibration_samples_are_refused_or_told() -> None:
    model = NETWORKS["mlp"](0)
    graph = model.SerializeToString()
    values = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
    notes = PASS.quantize(
        graph, calibration=samples_of(np.clip(values, -9, 0.1)), settings=QuantizationSettings()
    ).notes
    assert any("saturates" in note for note in notes)
    values[65, 3] = np.nan
    with pytest.raises(InvalidDatasetError, match="sample 65 "):
        PASS.quantize(graph, calibration=samples_of(values), settings=QuantizationSettings())


def test_nodes_that_stay_in_float_are_named_with_the_reason() -> None:
    builder = Builder()
    hidden = builder.gemm("fc1", builder.input("input", (6,)), 6, 8)
    odd = builder.node("odd", "Erf", [hidden])
    scores = builder.gemm("fc2", odd, 8, 3)
    output = builder.node("prob", "Softmax", [scores], axis=-1)
    model = builder.model({output: (3,)})

    def notes(**settings: Any) -> tuple[str, ...]:
        return PASS.quantize(
            model.SerializeToString(),
            calibration=samples_for(model),
            settings=QuantizationSettings(**settings),
        ).format_notes

    assert notes() == (
        "in float32, for rounding ties the greatest of its outputs: prob",
        "in float32 for want of a kernel in integers: odd (Erf)",
    )
    assert notes(number_format=NumberFormat.FLOAT32) == ()
    chosen = dict.fromkeys(("odd", "prob"), NumberFormat.FLOAT32)
    assert notes(node_formats=chosen) == ()


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'nothing'"):
        quantized("mlp", node_formats={"nothing": NumberFormat.FLOAT32})
    with pytest.raises(InvalidRequestError, match="guess"):
        quantized("mlp", method="guess")
    model = NETWORKS["mlp"](0)
    for calibration in (samples_for(model, 0), None):
        with pytest.raises(InvalidDatasetError, match="need calibration samples"):
            PASS.quantize(
                model.SerializeToString(), calibration=calibration, settings=QuantizationSettings()
            )


def test_float_formats_need_no_samples() -> None:
    graph = NETWORKS["mlp"](0).SerializeToString()
    for number_format in (NumberFormat.FLOAT32, NumberFormat.FLOAT16, NumberFormat.BFLOAT16):
        settings = QuantizationSettings(number_format=number_format)
        assert PASS.quantize(graph, calibration=None, settings=settings).graph


def test_targets_without_int8_are_told() -> None:
    target = HardwareSpec(
        name="plain", display_name="Plain", core="cortex-m4", clock_mhz=100.0,
        memory=Memory(ram_bytes=1, flash_bytes=1), runtime=Runtime(name="tflm"),
        number_formats=(NumberFormat.FLOAT32,),
    )  # fmt: skip
    assert PASS.applies_to(b"", target) == ("plain does not compute in int8",)
