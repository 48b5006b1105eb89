"""Sparsity: which weights become zero, by pattern and importance, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fakes.networks import NETWORKS, Builder
from tightfit_service.application.ports import DownloadPass, NodePass, PassContext
from tightfit_service.application.samples import Samples
from tightfit_service.domain.dataset import Layout
from tightfit_service.domain.errors import InvalidRequestError
from tightfit_service.domain.hardware import HardwareSpec, Memory, NumberFormat, Runtime
from tightfit_service.graph.profile import OnnxGraphInspector
from tightfit_service.passes.layer_weights import layer_weights
from tightfit_service.passes.sparsity import DOWNLOAD_RATIOS, SparsityPass, word_block

sparsity = SparsityPass()
as_port: NodePass = sparsity


def target(runtime: str, *, word_bytes: int = 4) -> HardwareSpec:
    return HardwareSpec(
        name="board",
        display_name="Board",
        core="cortex-m7",
        clock_mhz=280.0,
        memory=Memory(ram_bytes=1 << 20, flash_bytes=1 << 21, word_bytes=word_bytes),
        runtime=Runtime(name=runtime),
    )


def weight(data: bytes, name: str) -> Any:
    model = onnx.load_from_string(data)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return values[next(node for node in model.graph.node if node.name == name).input[1]]


def rows(data: bytes, name: str) -> Any:
    return layer_weights(onnx.load_from_string(data))[name].rows()


def apply(data: bytes, node: str, *, context: PassContext | None = None, **choice: Any) -> bytes:
    return sparsity.apply(data, {"nodes": {node: choice}}, context or PassContext())


def dense(out: int, into: int, *, seed: int = 0) -> bytes:
    builder = Builder(seed)
    name = builder.gemm("fc", builder.input("x", (into,)), into, out)
    return builder.model({name: (out,)}).SerializeToString()


CNN = NETWORKS["plain_cnn"](0).SerializeToString()
DEPTHWISE = NETWORKS["depthwise"](0).SerializeToString()


def test_the_smallest_weights_become_zero_and_others_stay_as_they_are() -> None:
    before, after = weight(CNN, "conv2"), weight(apply(CNN, "conv2", pattern="unstructured", ratio=0.75), "conv2")  # fmt: skip
    zero = after == 0
    assert zero.sum() == before.size * 3 // 4
    assert np.abs(before[zero]).max() <= np.abs(before[~zero]).min()
    assert np.array_equal(before[~zero], after[~zero])


def test_everything_but_the_chosen_weight_is_untouched() -> None:
    after = onnx.load_from_string(apply(CNN, "conv2", pattern="unstructured", ratio=0.5))
    before = onnx.load_from_string(CNN)
    changed = [
        old.name
        for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True)
        if old != new
    ]
    assert changed == ["conv2.w"]
    assert list(before.graph.node) == list(after.graph.node)


def test_blocks_are_words_along_the_input_channels() -> None:
    data = apply(CNN, "conv2", pattern="block", block=[1, 4], ratio=0.5)
    # (out, in, height, width) as (out, height, width, in): words of four channels of one tap
    words = weight(data, "conv2").transpose(0, 2, 3, 1).reshape(-1, 4)
    zeros = (words == 0).sum(axis=1)
    assert set(zeros) == {0, 4}
    assert (zeros == 4).sum() == len(words) // 2
    norms = np.square(weight(CNN, "conv2").transpose(0, 2, 3, 1).reshape(-1, 4)).sum(axis=1)
    assert norms[zeros == 4].max() <= norms[zeros == 0].min()


def test_blocks_of_depthwise_layers_lie_along_their_channels() -> None:
    node = next(n for n in onnx.load_from_string(DEPTHWISE).graph.node if n.op_type == "Conv" and n.attribute and any(a.name == "group" and a.i > 1 for a in n.attribute))  # fmt: skip
    data = apply(DEPTHWISE, node.name, pattern="block", block=[1, 4], ratio=0.5)
    values = weight(data, node.name)
    assert values.shape[1] == 1
    words = values.transpose(2, 3, 1, 0).reshape(-1, 4)
    assert set((words == 0).sum(axis=1)) == {0, 4}


def test_blocks_may_span_rows_and_end_at_the_edge() -> None:
    data = dense(7, 10)
    after = rows(apply(data, "fc", pattern="block", block=[2, 4], ratio=0.5), "fc")
    blocks = [
        after[row : row + 2, column : column + 4]
        for row, column in itertools.product(range(0, 7, 2), range(0, 10, 4))
    ]
    kinds = [int(np.count_nonzero(block)) for block in blocks]
    assert all(kind in {0, block.size} for kind, block in zip(kinds, blocks, strict=True))
    assert kinds.count(0) == len(blocks) // 2


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (3, 8)])
def test_of_every_m_the_n_largest_stay(kept: int, group: int) -> None:
    data = dense(9, 4 * group + 1)
    before, after = rows(data, "fc"), rows(apply(data, "fc", pattern="n:m", n=kept, m=group), "fc")
    whole = np.abs(before[:, : 4 * group]).reshape(-1, group)
    left = after[:, : 4 * group].reshape(-1, group) != 0
    assert (left.sum(axis=1) == kept).all()
    for values, stays in zip(whole, left, strict=True):
        assert set(np.flatnonzero(stays)) == set(np.argsort(-values)[:kept])
    assert np.array_equal(after[:, -1], before[:, -1])


def test_with_data_the_inputs_count() -> None:
    data = dense(6, 8)
    stored = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    stored[:, :4] *= 1e-4
    samples = Samples(stored=stored, labels=None, layout=Layout.ANY, model_layout=Layout.ANY)
    after = rows(
        apply(data, "fc", context=PassContext(calibration=samples), pattern="unstructured", ratio=0.5),
        "fc",
    )  # fmt: skip
    assert not after[:, :4].any()
    assert after[:, 4:].all()


def test_data_is_used_for_convolutions_too() -> None:
    stored = np.random.default_rng(1).normal(size=(20, 3, 8, 8)).astype(np.float32)
    stored[:, 1] *= 1e-4
    context = PassContext(calibration=Samples(stored=stored, labels=None))
    data = apply(CNN, "conv1", context=context, pattern="unstructured", ratio=1 / 3)
    after = weight(data, "conv1")
    assert not after[:, 1].any()
    assert after[:, [0, 2]].all()
    for node in ("conv1", "conv2", "fc1"):
        apply(CNN, node, context=context, pattern="n:m", n=2, m=4)
    for name in ("depthwise", "channel_shuffle", "upsampling", "spatial_attention"):
        model = NETWORKS[name](0)
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
        samples = Samples(stored=np.ones((3, *shape), dtype=np.float32), labels=None)
        nodes = {node: {"pattern": "unstructured", "ratio": 0.5} for node in layer_weights(model)}
        result = sparsity.apply(
            model.SerializeToString(), {"nodes": nodes}, PassContext(calibration=samples)
        )
        for node in nodes:
            # weights that two nodes share are already half zero for the second
            assert np.mean(weight(result, node) == 0) == pytest.approx(0.5, abs=0.1)


def test_pruning_again_counts_the_zeros_that_are_there() -> None:
    once = apply(CNN, "fc1", pattern="unstructured", ratio=0.5)
    twice = apply(once, "fc1", pattern="unstructured", ratio=0.8)
    assert np.all(weight(twice, "fc1")[weight(once, "fc1") == 0] == 0)
    assert np.mean(weight(twice, "fc1") == 0) == pytest.approx(0.8, abs=0.01)
    assert apply(twice, "fc1", pattern="unstructured", ratio=0.5) == twice


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_stays_valid(name: str) -> None:
    model = NETWORKS[name](0)
    data = model.SerializeToString()
    nodes = {
        node: {"pattern": "block", "block": [1, 4], "ratio": 0.6} for node in layer_weights(model)
    }
    result = sparsity.apply(data, {"nodes": nodes}, PassContext())
    onnx.checker.check_model(onnx.load_from_string(result), full_check=True)
    if nodes:
        assert all(np.mean(rows(result, node) == 0) > 0.4 for node in nodes)


def test_rows_of_any_layer_come_back() -> None:
    for name in NETWORKS:
        for found in layer_weights(NETWORKS[name](0)).values():
            assert np.array_equal(found.restored(found.rows()), found.value)


def test_errors_are_those_of_the_weights() -> None:
    parameters = {"nodes": {"fc": {"pattern": "unstructured", "ratio": 0.5}}}
    data = dense(6, 8)
    before, after = rows(data, "fc"), rows(sparsity.apply(data, parameters, PassContext()), "fc")
    expected = np.square(before - after).sum() / np.square(before).sum()
    assert sparsity.errors(data, parameters, PassContext()) == {"fc": pytest.approx(expected)}


def test_blocks_follow_the_word_and_the_number_format() -> None:
    board = target("TFLM+CMSIS-NN")
    assert word_block(board, NumberFormat.INT8) == (1, 4)
    assert word_block(board, NumberFormat.INT4) == (1, 8)
    assert word_block(board, NumberFormat.FLOAT32) == (1, 1)
    assert word_block(target("ONNX Runtime", word_bytes=32), NumberFormat.FLOAT16) == (1, 16)


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("TFLM+CMSIS-NN", "multiply zeros"),
        ("microTVM+CMSIS-NN", "multiply zeros"),
        ("ONNX Runtime", "dense ones"),
        ("TensorFlow Lite XNNPACK", "1x1"),
        ("X-CUBE-AI", "no sparse kernels"),
    ],
)
def test_it_is_said_where_zeros_bring_no_speed(runtime: str, words: str) -> None:
    reasons = sparsity.applies_to(CNN, target(runtime))
    assert words in reasons[0]
    assert runtime in reasons[0]
    assert "packed" in reasons[1]
    profile = OnnxGraphInspector().profile(CNN)
    assert sparsity.alternatives(CNN, profile, target(runtime)) == {}


def test_networks_without_weights_are_named() -> None:
    builder = Builder()
    builder.node("relu", "Relu", [builder.input("x", (4,))])
    data = builder.model({"relu_out": (4,)}).SerializeToString()
    assert "no convolution" in sparsity.applies_to(data, target("TFLM"))[0]


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"node": {}}, "parameters.node"),
        ({"nodes": []}, "parameters.nodes"),
        ({"nodes": {"nothing": {}}}, "parameters.nodes[nothing]"),
        ({"nodes": {"fc": 3}}, "parameters.nodes[fc]"),
        ({"nodes": {"fc": {}}}, "parameters.nodes[fc].pattern"),
        ({"nodes": {"fc": {"pattern": "random", "ratio": 0.5}}}, "parameters.nodes[fc].pattern"),
        ({"nodes": {"fc": {"pattern": "unstructured"}}}, "parameters.nodes[fc].ratio"),
        ({"nodes": {"fc": {"pattern": "unstructured", "ratio": 1.0}}}, "parameters.nodes[fc].ratio"),
        ({"nodes": {"fc": {"pattern": "unstructured", "ratio": True}}}, "parameters.nodes[fc].ratio"),
        ({"nodes": {"fc": {"pattern": "unstructured", "ratio": float("nan")}}}, "parameters.nodes[fc].ratio"),
        ({"nodes": {"fc": {"pattern": "unstructured", "ratio": 0.5, "n": 2}}}, "parameters.nodes[fc].n"),
        ({"nodes": {"fc": {"pattern": "block", "ratio": 0.5}}}, "parameters.nodes[fc].block"),
        ({"nodes": {"fc": {"pattern": "block", "ratio": 0.5, "block": [0, 4]}}}, "parameters.nodes[fc].block"),
        ({"nodes": {"fc": {"pattern": "block", "ratio": 0.5, "block": "14"}}}, "parameters.nodes[fc].block"),
        ({"nodes": {"fc": {"pattern": "n:m", "n": 4, "m": 4}}}, "parameters.nodes[fc].n"),
        ({"nodes": {"fc": {"pattern": "n:m", "n": 1, "m": 1}}}, "parameters.nodes[fc].m"),
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sparsity.check(dense(4, 4), parameters)
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("number_format", "block"), [(NumberFormat.INT8, 4), (NumberFormat.FLOAT32, 1)]
)
def test_strengths_for_the_download_come_in_blocks_of_the_memory_word(
    number_format: NumberFormat, block: int
) -> None:
    offered: DownloadPass = sparsity
    strengths = offered.strengths(CNN, target("TFLM"), number_format)
    assert [next(iter(one["nodes"].values()))["ratio"] for one in strengths] == list(
        DOWNLOAD_RATIOS
    )
    for one in strengths:
        sparsity.check(CNN, one)
        assert all(choice["block"] == [1, block] for choice in one["nodes"].values())
    after = layer_weights(onnx.load_from_string(sparsity.apply(CNN, strengths[-1], PassContext())))
    zeros = [(after[name].value == 0).mean() for name in strengths[-1]["nodes"]]
    assert min(zeros) > DOWNLOAD_RATIOS[-1] - 0.05


def test_a_weight_that_two_layers_read_is_offered_once() -> None:
    model = onnx.load_from_string(CNN)
    first, second = (node for node in model.graph.node if node.name in {"conv2", "fc1"})
    sizes = {name: weight.value.size for name, weight in layer_weights(model).items()}
    assert {first.name, second.name} <= sizes.keys()
    second.input[1] = first.input[1]
    names = sparsity.strengths(model.SerializeToString(), target("TFLM"), NumberFormat.INT8)
    assert first.name in names[0]["nodes"]
    assert second.name not in names[0]["nodes"]


def test_each_layer_is_made_sparse_alone() -> None:
    nodes = {name: {"pattern": "unstructured", "ratio": 0.5} for name in ("conv2", "fc1")}
    together = sparsity.apply(CNN, {"nodes": nodes}, PassContext())
    found = list(sparsity.each_alone(CNN, {"nodes": nodes}, PassContext()))
    assert [layer.node for layer in found] == ["conv2", "fc1"]
    errors = sparsity.errors(CNN, {"nodes": nodes}, PassContext())
    for layer in found:
        assert layer.error == errors[layer.node] > 0
        for name in layer_weights(onnx.load_from_string(CNN)):
            expected = together if name == layer.node else CNN
            np.testing.assert_array_equal(weight(layer.graph, name), weight(expected, name))
    with pytest.raises(InvalidRequestError, match="no layer"):
        sparsity.each_alone(CNN, {"nodes": {"nobody": {}}}, PassContext())
