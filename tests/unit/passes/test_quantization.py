"""Tests of static int8 quantization: number formats of every part, exceptions, determinism."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fakes.networks import NETWORKS, Builder
from tightfit_service.application.ports import QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import (
    InvalidDatasetError,
    InvalidRequestError,
    UnsupportedError,
)
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat, Runtime
from tightfit_service.passes.quantization import StaticQuantizationPass, activations

PASS = StaticQuantizationPass()


def samples_for(model: onnx.ModelProto, count: int = 40) -> Samples:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    # Cubes have the long tails that calibration methods are there for.
    stored = (np.random.default_rng(0).normal(size=(count, *shape)) ** 3).astype(np.float32)
    return Samples(stored=stored, labels=None)


def quantized(name: str, **settings: Any) -> onnx.ModelProto:
    model = NETWORKS[name](0)
    data = PASS.quantize(
        model.SerializeToString(),
        calibration=samples_for(model),
        settings=QuantizationSettings(**settings),
    )
    return onnx.load_from_string(data)


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


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
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
    result = onnx.load_from_string(data)
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
    assert onnx.load_from_string(data).opset_import[0].version >= 13


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'nothing'"):
        quantized("mlp", node_formats={"nothing": NumberFormat.FLOAT32})
    with pytest.raises(InvalidRequestError, match="entropy"):
        quantized("mlp", method="entropy")
    with pytest.raises(UnsupportedError, match="float16"):
        quantized("mlp", number_format=NumberFormat.FLOAT16)
    with pytest.raises(UnsupportedError, match="one input"):
        quantized("several_outputs")
    model = NETWORKS["mlp"](0)
    with pytest.raises(InvalidDatasetError, match="no calibration samples"):
        PASS.quantize(
            model.SerializeToString(),
            calibration=samples_for(model, 0),
            settings=QuantizationSettings(),
        )


def test_targets_without_int8_are_told() -> None:
    target = HardwareSpec(
        name="plain", display_name="Plain", core="cortex-m4", clock_mhz=100.0,
        memory=Memory(ram_bytes=1, flash_bytes=1), runtime=Runtime(name="tflm"),
        number_formats=(NumberFormat.FLOAT32,),
    )  # fmt: skip
    assert PASS.applies_to(b"", target) == ("plain does not compute in int8",)
