"""Tests of cross-layer equalization: the same function, ranges evened out, chains that end."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fakes.networks import NETWORKS, Builder, random_inputs
from tightfit_service.adapters.formats.onnx_execution import run_feeds
from tightfit_service.application.ports import PassContext, QuantizationSettings
from tightfit_service.application.samples import Samples
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat, Runtime
from tightfit_service.passes.activation_values import Observer
from tightfit_service.passes.equalization import EqualizationPass
from tightfit_service.passes.quantization import StaticQuantizationPass

PASS = EqualizationPass()


def applied(model: onnx.ModelProto) -> bytes:
    return PASS.apply(model.SerializeToString(), {}, PassContext())


def weights(graph: bytes) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    model = onnx.load_from_string(graph)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def uneven(seed: int = 0, *, bias: float = 1.0) -> onnx.ModelProto:
    """A depthwise chain whose channels differ by factors of hundreds, as folded BatchNorm leaves them.

    Biases are multiplied by `bias`.
    """
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 8)
    x = b.conv("dw", x, 8, 8, groups=8)
    x = b.conv("point", x, 8, 12, kernel=1, relu=False)
    x = b.node("slope", "PRelu", [x, b.weight("slope.v", (12, 1, 1), fan_in=8)])
    x = b.node("pool", "MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("flat", "Flatten", [x], axis=1)
    x = b.gemm("fc", x, 12 * 16, 5)
    for number, name in enumerate(("stem", "dw", "point")):
        size = len(b.constants[f"{name}.b"])
        factors = 10 ** np.random.default_rng(seed + number).uniform(-2.0, 0.5, size=size)
        for part, shape in (("w", (-1, 1, 1, 1)), ("b", (-1,))):
            value = b.constants[f"{name}.{part}"] * factors.reshape(shape)
            value = value * bias if part == "b" else value
            b.constants[f"{name}.{part}"] = value.astype(np.float32)
    return b.model({x: (5,)})


@pytest.mark.parametrize("name", [*NETWORKS, "uneven"])
def test_networks_compute_the_same(name: str) -> None:
    model = uneven() if name == "uneven" else NETWORKS[name](0)
    inputs = random_inputs(model, batch=4)
    graph = applied(model)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    for before, after in zip(
        run_feeds(model.SerializeToString(), inputs), run_feeds(graph, inputs), strict=True
    ):
        assert np.allclose(before, after, rtol=1e-4, atol=1e-5 * np.abs(before).max())


def test_ranges_of_a_chain_meet() -> None:
    found = weights(applied(uneven(bias=0.0)))
    stem = np.abs(found["stem.w"]).max(axis=(1, 2, 3))
    depthwise = np.abs(found["dw.w"]).max(axis=(1, 2, 3))
    point = np.abs(found["point.w"]).max(axis=(0, 2, 3))
    assert np.allclose(stem, depthwise, rtol=0.02)
    assert np.allclose(depthwise, point, rtol=0.02)
    ahead = np.abs(found["point.w"]).max(axis=(1, 2, 3))
    dense = np.abs(found["fc.w"].reshape(5, 12, 16)).max(axis=(0, 2))
    assert np.allclose(ahead, dense, rtol=0.02)


@pytest.mark.parametrize("with_samples", [False, True])
def test_no_channel_outgrows_its_tensor(with_samples: bool) -> None:
    """A channel of next to no weight and a large bias must not become the range of all."""
    model = uneven()
    for tensor in model.graph.initializer:
        if tensor.name in {"stem.w", "stem.b"}:
            values = numpy_helper.to_array(tensor).copy()
            values[2] = 1e-6 if tensor.name == "stem.w" else 0.9 * np.abs(values).max()
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    inputs = random_inputs(model, batch=32)
    samples = Samples(stored=inputs["input"], labels=None) if with_samples else None
    graph = PASS.apply(model.SerializeToString(), {}, PassContext(calibration=samples))
    before, after = weights(model.SerializeToString()), weights(graph)
    if not with_samples:
        assert np.abs(after["stem.b"]).max() <= 1.001 * np.abs(before["stem.b"]).max()
    else:
        peaks = []
        for data in (model, onnx.load_from_string(graph)):
            observer = Observer(onnx.shape_inference.infer_shapes(data), ["stem.relu_out"])
            peaks.append(observer.run(inputs)["stem.relu_out"].max())
        assert peaks[1] <= 1.001 * peaks[0]


def test_one_scale_per_tensor_loses_less() -> None:
    model = uneven()
    inputs = random_inputs(model, batch=64)
    samples = Samples(stored=inputs["input"], labels=None)
    expected = run_feeds(model.SerializeToString(), inputs)[0]
    noise = []
    for graph in (model.SerializeToString(), applied(model)):
        result = StaticQuantizationPass().quantize(
            graph, calibration=samples, settings=QuantizationSettings(per_channel=False)
        )
        noise.append(float(((run_feeds(result.graph, inputs)[0] - expected) ** 2).mean()))
    assert noise[1] < 0.3 * noise[0]


def test_clip_and_shared_outputs_end_a_chain() -> None:
    """ReLU6 clips where it clipped before, and both readers of a branch see the same values."""
    model = NETWORKS["depthwise"](0)
    before, after = weights(model.SerializeToString()), weights(applied(model))
    assert np.array_equal(before["stem.w"], after["stem.w"])
    model = NETWORKS["residual"](0)
    folded = weights(applied(model))
    assert np.array_equal(weights(model.SerializeToString())["b.down.w"], folded["b.down.w"])


def test_dead_channels_stay_dead() -> None:
    model = uneven()
    for tensor in model.graph.initializer:
        if tensor.name == "dw.w":
            values = numpy_helper.to_array(tensor).copy()
            values[3] = 0.0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    found = weights(applied(model))
    assert not found["dw.w"][3].any()
    assert all(np.isfinite(value).all() for value in found.values())


def target(*formats: NumberFormat) -> HardwareSpec:
    return HardwareSpec(
        name="board", display_name="Board", core="cortex-m4", clock_mhz=100.0,
        memory=Memory(ram_bytes=1, flash_bytes=1), runtime=Runtime(name="tflm"),
        number_formats=formats,
    )  # fmt: skip


def test_reasons_are_told() -> None:
    chain = uneven().SerializeToString()
    assert PASS.applies_to(chain, target(NumberFormat.INT8)) == ()
    assert "floats" in PASS.applies_to(chain, target(NumberFormat.FLOAT32))[0]
    lonely = Builder()
    lonely.gemm("fc", lonely.input("x", (6,)), 6, 4)
    reasons = PASS.applies_to(
        lonely.model({"fc_out": (4,)}).SerializeToString(), target(NumberFormat.INT8)
    )
    assert "no two layers" in reasons[0]


def test_parameters_are_refused() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PASS.apply(uneven().SerializeToString(), {"speed": 3}, PassContext())
    assert caught.value.field == "parameters.speed"
