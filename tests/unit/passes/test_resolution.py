"""Smaller inputs: rebuilt networks, sizes offered, and networks that are tied to their size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder, random_inputs
from fakes.odd_networks import ODD_NETWORKS
from tightfit_service.application.ports import PassContext
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, Runtime
from tightfit_service.graph.model_file import load_model
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.resolution import ResolutionPass
from tightfit_service.passes.structured_pruning import StructuredPruningPass

TARGET = HardwareSpec(
    name="board",
    display_name="Board",
    core="cortex-m7",
    clock_mhz=280.0,
    memory=Memory(ram_bytes=1 << 20, flash_bytes=1 << 21),
    runtime=Runtime(name="tflm"),
)
ALL_NETWORKS = {**NETWORKS, **ODD_NETWORKS}
resolution = ResolutionPass()


def run(data: bytes, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def images(model: ModelProto, height: int, width: int) -> dict[str, Any]:
    """Return images for a model at another size, each one gray value: all sizes show the same."""
    (feed,) = random_inputs(model).values()
    gray = feed.mean(axis=(2, 3), keepdims=True)
    name = model.graph.input[0].name
    return {name: np.broadcast_to(gray, (*feed.shape[:2], height, width)).astype(np.float32)}


def pointwise(b: Builder, x: str, channels: int = 3, wide: int = 6) -> str:
    """A network that treats all positions alike, so that gray images have the same answer at any size."""
    x = b.conv("one", x, channels, wide, kernel=1)
    return b.conv("two", x, wide, wide, kernel=1, stride=2)


@pytest.mark.parametrize("size", [(24, 24), (16, 24), (12, 8)])
def test_the_same_gray_image_has_the_same_answer_at_any_size(size: tuple[int, int]) -> None:
    b = Builder()
    model = b.model({b.head(pointwise(b, b.input("input", (3, 32, 32))), 6): (5,)})
    data = model.SerializeToString()
    result = resolution.apply(
        data, dict(zip(("height", "width"), size, strict=True)), PassContext()
    )
    onnx.checker.check_model(load_model(result), full_check=True)
    expected = run(data, images(model, 32, 32))[0]
    np.testing.assert_allclose(run(result, images(model, *size))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_last", [False, True])
def test_networks_can_shrink_their_images_themselves(is_last: bool) -> None:
    b = Builder()
    x = b.input("input", (32, 32, 3) if is_last else (3, 32, 32))
    if is_last:
        x = b.node("nchw", "Transpose", [x], perm=[0, 3, 1, 2])
    data = b.model({b.head(pointwise(b, x), 6): (5,)}).SerializeToString()
    image = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    # halfway between pixel centres, linear interpolation is the mean of four
    halved = image.reshape(2, 3, 16, 2, 16, 2).mean(axis=(3, 5))

    def answer(parameters: dict[str, Any], values: Any) -> Any:
        graph = resolution.apply(data, parameters, PassContext())
        turned = values.transpose(0, 2, 3, 1) if is_last else values
        return run(graph, {"input": np.ascontiguousarray(turned)})[0]

    half = {"height": 16, "width": 16}
    expected = answer(half, halved)
    np.testing.assert_allclose(answer({**half, "inside": True}, image), expected, atol=1e-5)


def test_pools_over_the_whole_map_follow_it() -> None:
    b = Builder()
    x = pointwise(b, b.input("input", (3, 32, 32)))
    x = b.node("pool", "AveragePool", [x], kernel_shape=[16, 16])
    x = b.node("nhwc", "Transpose", [x], perm=[0, 2, 3, 1])
    x = b.node("flat", "Reshape", [x, b.ints("shape", [0, 6])])
    model = b.model({b.gemm("fc", x, 6, 5): (5,)})
    data = model.SerializeToString()
    result = resolution.apply(data, {"height": 24, "width": 20}, PassContext())
    kinds = {node.name: node.op_type for node in load_model(result).graph.node}
    assert kinds["pool"] == "GlobalAveragePool"
    np.testing.assert_allclose(
        run(result, images(model, 24, 20))[0], run(data, images(model, 32, 32))[0], rtol=1e-4
    )


def test_pools_over_one_axis_of_the_map_follow_it() -> None:
    b = Builder()
    x = pointwise(b, b.input("input", (3, 32, 32)))
    x = b.node("pool", "MaxPool", [x], kernel_shape=[16, 4], strides=[16, 4])
    model = b.model({b.head(x, 6): (5,)})
    data = model.SerializeToString()
    result = resolution.apply(data, {"height": 24, "width": 24}, PassContext())
    shapes = {v.name: v for v in load_model(result).graph.value_info}
    sizes = [dim.dim_value for dim in shapes["pool_out"].type.tensor_type.shape.dim[1:]]
    assert sizes == [6, 1, 3]


def test_positions_merged_and_divided_again_are_rewritten() -> None:
    b = Builder()
    x = pointwise(b, b.input("input", (3, 32, 32)))
    x = b.node("tokens", "Reshape", [x, b.ints("tokens.shape", [0, 6, 256])])
    x = b.node("swap", "Transpose", [x], perm=[0, 2, 1])
    x = b.node("dense", "MatMul", [x, b.weight("dense.w", (6, 8), fan_in=6)])
    x = b.node("grid", "Reshape", [x, b.ints("grid.shape", [0, 16, 16, 8])])
    x = b.node("nchw", "Transpose", [x], perm=[0, 3, 1, 2])
    model = b.model({b.head(x, 8): (5,)})
    data = model.SerializeToString()
    result = resolution.apply(data, {"height": 24, "width": 16}, PassContext())
    np.testing.assert_allclose(
        run(result, images(model, 24, 16))[0],
        run(data, images(model, 32, 32))[0],
        rtol=1e-3,
        atol=1e-5,
    )


def test_resize_to_spelt_sizes_keeps_its_ratio() -> None:
    b = Builder()
    x = pointwise(b, b.input("input", (3, 32, 32)))
    x = b.node("grow", "Resize", [x, "", "", b.ints("sizes", [1, 6, 32, 32])], mode="nearest")
    model = b.model({b.head(x, 6): (5,)})
    result = resolution.apply(model.SerializeToString(), {"height": 16, "width": 24}, PassContext())
    feeds = {name: value[:1] for name, value in images(model, 16, 24).items()}
    assert run(result, feeds)[0].shape == (1, 5)
    sizes = {t.name: onnx.numpy_helper.to_array(t) for t in load_model(result).graph.initializer}
    assert sizes["grow.sizes"].tolist() == [1, 6, 16, 24]


def test_channels_last_inputs_are_known_by_their_transpose() -> None:
    b = Builder()
    x = b.node("nchw", "Transpose", [b.input("input", (32, 48, 3))], perm=[0, 3, 1, 2])
    model = b.model({b.head(pointwise(b, x), 6): (5,)})
    data = model.SerializeToString()
    result = load_model(resolution.apply(data, {"height": 24, "width": 36}, PassContext()))
    dims = result.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims[1:]] == [24, 36, 3]
    assert [v.parameters for v in resolution.variants(data, TARGET)] == [
        {"height": height, "width": width, "inside": True}
        for height, width in ((28, 42), (24, 36), (20, 30), (16, 24))
    ]


def strided(b: Builder, size: int, strides: int) -> str:
    x = b.input("input", (3, size, size))
    for index in range(strides):
        x = b.conv(f"conv{index}", x, 3 if index == 0 else 4, 4, stride=2)
    return x


@pytest.mark.parametrize(
    ("size", "strides", "expected"),
    [(32, 2, [28, 24, 20, 16]), (96, 5, [80, 64, 48]), (224, 5, [192, 160, 128]), (8, 1, [])],
)
def test_sizes_are_multiples_of_the_total_stride(
    size: int, strides: int, expected: list[int]
) -> None:
    b = Builder()
    data = b.model({b.head(strided(b, size, strides), 4): (5,)}).SerializeToString()
    found = [variant.parameters["height"] for variant in resolution.variants(data, TARGET)]
    assert found == expected
    macs = [
        OnnxGraphInspector().profile(resolution.apply(data, variant.parameters, PassContext())).macs
        for variant in resolution.variants(data, TARGET)
    ]
    assert macs == sorted(macs, reverse=True)


TIED = {
    "attention",
    "batch_in_channels",
    "channels_last_head",
    "mlp",
    "plain_cnn",
    "recurrent",
    "sequence",
    "several_outputs",
    "shared_weights",
    "spatial_attention",
    "upsampling",
}


@pytest.mark.parametrize("name", sorted({*ALL_NETWORKS} - TIED))
def test_networks_with_pooled_heads_are_resized(name: str) -> None:
    model = ALL_NETWORKS[name](0)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    size = {"height": shape[2] // 2, "width": shape[3] // 2}
    result = resolution.apply(model.SerializeToString(), size, PassContext())
    feeds = {model.graph.input[0].name: np.zeros((2, shape[1], *size.values()), np.float32)}
    assert [value.shape for value in run(result, feeds)] == [(2, 5)]


@pytest.mark.parametrize("name", sorted(TIED))
def test_other_networks_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        resolution.apply(
            ALL_NETWORKS[name](0).SerializeToString(), {"height": 2, "width": 2}, PassContext()
        )
    assert caught.value.field == "parameters"
    assert caught.value.remedy


RESIZED = ["residual", "padded_shortcut", "depthwise", "inception", "squeeze_excite", "dense_block"]


@pytest.mark.parametrize("name", RESIZED)
def test_common_architectures_are_resized_and_pruned(name: str) -> None:
    model = NETWORKS[name](0)
    result = resolution.apply(model.SerializeToString(), {"height": 4, "width": 4}, PassContext())
    before = [node.name for node in model.graph.node]
    assert sorted(node.name for node in load_model(result).graph.node) == sorted(before)
    pruning = StructuredPruningPass()
    space = pruning.space(result)
    keep = {g.group_id: list(range((g.unit_count + 1) // 2)) for g in space.groups}
    assert run(pruning.apply(result, keep), images(model, 4, 4))[0].shape == (2, 5)


def tied(name: str) -> ModelProto:
    b = Builder()
    x = pointwise(b, b.input("input", (3, 32, 32)))
    if name == "positions":
        x = b.node("pe", "Add", [x, b.weight("pe.v", (1, 6, 16, 16), fan_in=2)])
    if name == "kernel":
        weight = b.weight("wide.w", (6, 6, 16, 16), fan_in=1536)
        x = b.node("wide", "Conv", [x, weight], kernel_shape=[16, 16])
    if name == "map":
        return b.model({x: (6, 16, 16)})
    return b.model({b.head(x, 6): (5,)})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NETWORKS["plain_cnn"](0), '"fc1" has weights for each position'),
        (NETWORKS["channels_last_head"](0), '"fc" has weights for each position'),
        (tied("positions"), '"pe" has a constant with an entry per position'),
        (tied("kernel"), '"wide" has a kernel larger than the map'),
        (tied("map"), "follows the size of the input"),
        (NETWORKS["mlp"](0), "is no image"),
        (NETWORKS["several_outputs"](0), "2 inputs"),
    ],
)
def test_networks_tied_to_their_size_are_refused(model: ModelProto, message: str) -> None:
    data = model.SerializeToString()
    with pytest.raises(InvalidRequestError, match=message):
        resolution.check(data, {"height": 4, "width": 4})
    assert resolution.variants(data, TARGET) == ()
    assert resolution.applies_to(data, TARGET)


def test_networks_that_can_be_resized_are_told_so() -> None:
    b = Builder()
    data = b.model({b.head(strided(b, 32, 2), 4): (5,)}).SerializeToString()
    assert resolution.applies_to(data, TARGET) == ()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"height": 4, "width": 4, "depth": 1}, "parameters.depth"),
        ({"height": 4}, "parameters.width"),
        ({"height": 0, "width": 4}, "parameters.height"),
        ({"height": 4, "width": 4.0}, "parameters.width"),
        ({"height": True, "width": 4}, "parameters.height"),
        ({"height": 4, "width": 33}, "parameters.width"),
        ({"height": 4, "width": 4, "inside": 1}, "parameters.inside"),
    ],
)
def test_parameters_are_refused_with_the_field(parameters: dict[str, Any], field: str) -> None:
    b = Builder()
    data = b.model({b.head(strided(b, 32, 2), 4): (5,)}).SerializeToString()
    with pytest.raises(InvalidRequestError) as caught:
        resolution.check(data, parameters)
    assert caught.value.field == field
    assert caught.value.remedy
