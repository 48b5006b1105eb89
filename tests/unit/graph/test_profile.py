"""The profile counts the work that a runtime does, and nothing that it folds away."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from fakes.networks import NETWORKS, Builder
from fakes.odd_networks import ODD_NETWORKS
from tightfit_service.domain.errors import InvalidModelError
from tightfit_service.domain.network import NetworkProfile, Operator, OperatorKind
from tightfit_service.graph.profile import OnnxGraphInspector


def profile(model: ModelProto) -> NetworkProfile:
    return OnnxGraphInspector().profile(model.SerializeToString())


def operator(found: NetworkProfile, node: str) -> Operator:
    return next(op for op in found.operators if op.node == node)


def test_convolution_with_folded_norm_and_activation() -> None:
    conv = operator(profile(NETWORKS["plain_cnn"](0)), "conv1")
    assert conv.kind is OperatorKind.CONV
    assert conv.macs == 8 * 8 * 8 * 3 * 9
    assert (conv.in_channels, conv.out_channels) == (3, 8)
    assert (conv.in_size, conv.out_size) == ((8, 8), (8, 8))
    assert (conv.kernel, conv.stride, conv.groups) == ((3, 3), (1, 1), 1)
    assert (conv.weight_count, conv.bias_count) == (216, 8)
    assert conv.fused == ("conv1.bn", "conv1.relu")
    assert conv.outputs == ("conv1.relu_out",)


def test_norm_that_cannot_be_folded_takes_its_activation() -> None:
    b = Builder()
    x = b.input("x", (6, 4, 4))
    statistics = [b.vector(name, 6, low=0.5, high=2.0) for name in ("s", "b", "m", "v")]
    b.node("relu", "Relu", [b.node("norm", "BatchNormalization", [x, *statistics])])
    (norm,) = profile(b.model({"relu_out": (6, 4, 4)})).operators
    assert (norm.op_type, norm.fused, norm.outputs) == (
        "BatchNormalization",
        ("relu",),
        ("relu_out",),
    )


def test_order_and_kinds_of_a_plain_network() -> None:
    found = profile(NETWORKS["plain_cnn"](0))
    assert [(op.node, op.kind.value) for op in found.operators] == [
        ("conv1", "conv"),
        ("conv2", "conv"),
        ("pool", "pool"),
        ("flat", "reshape"),
        ("fc1", "dense"),
        ("fc2", "dense"),
        ("prob", "softmax"),
    ]
    assert found.inputs == ("input",)
    assert found.outputs == ("prob_out",)
    assert found.tensors["flat_out"] == (1, 192)
    assert "conv1_out" not in found.tensors
    assert operator(found, "fc1").macs == 192 * 10


def test_depthwise_convolution_and_its_multiplier() -> None:
    found = profile(NETWORKS["depthwise"](0))
    one, two = operator(found, "dw"), operator(found, "dw2")
    assert one.kind is two.kind is OperatorKind.DEPTHWISE_CONV
    assert one.macs == 8 * 8 * 12 * 9
    assert (two.in_channels, two.out_channels, two.groups) == (6, 12, 6)
    assert two.macs == 4 * 4 * 12 * 9
    assert two.weight_count == 12 * 9


def test_separate_bias_counts_as_the_convolutions_own() -> None:
    found = profile(NETWORKS["constant_arithmetic"](0))
    conv = operator(found, "conv1")
    assert conv.fused == ("bias",)
    assert conv.bias_count == 7
    scale = operator(found, "scale")
    assert (scale.kind, scale.bias_count) == (OperatorKind.ELEMENTWISE, 7)
    assert found.constant_count == 1


def test_dense_layer_of_matmul_and_add() -> None:
    dense = operator(profile(NETWORKS["mlp"](0)), "fc2")
    assert dense.kind is OperatorKind.DENSE
    assert (dense.in_channels, dense.out_channels, dense.macs) == (12, 9, 108)
    assert (dense.weight_count, dense.bias_count) == (108, 9)
    assert dense.fused == ("fc2.add",)


def test_shortcut_of_slice_and_pad_moves_data_without_work() -> None:
    found = profile(NETWORKS["padded_shortcut"](0))
    cut, pad = operator(found, "s1.slice"), operator(found, "s1.pad")
    assert (cut.kind, pad.kind) == (OperatorKind.SLICE, OperatorKind.PAD)
    assert cut.macs == pad.macs == 0
    assert (pad.in_channels, pad.out_channels) == (4, 8)
    assert operator(found, "s1.add").fused == ("s1.relu",)


def test_activation_with_two_readers_of_its_source_is_an_operator() -> None:
    b = Builder()
    x = b.conv("conv", b.input("input", (3, 4, 4)), 3, 4, relu=False)
    y = b.node("relu", "Relu", [x])
    x = b.node("join", "Mul", [x, y])
    found = profile(b.model({b.head(x, 4): (5,)}))
    assert operator(found, "conv").fused == ()
    assert operator(found, "relu").kind is OperatorKind.ACTIVATION


def test_channels_last_tensors_are_told_in_nchw_order() -> None:
    found = profile(NETWORKS["channels_last_head"](0))
    assert found.tensors["nhwc_out"] == (1, 4, 3, 3)
    assert operator(found, "nhwc").out_channels == 4


@pytest.mark.parametrize("size", [8, 6])
def test_a_convolution_of_a_channels_last_input_reads_its_channels(size: int) -> None:
    b = Builder(0)
    x = b.node("nchw", "Transpose", [b.input("image", (size, 10, 6))], perm=[0, 3, 1, 2])
    x = b.conv("conv", x, 6, 8)
    found = operator(profile(b.model({x: (8, size, 10)})), "conv")
    assert (found.in_channels, found.in_size) == (6, (size, 10))
    assert (found.out_channels, found.out_size) == (8, (size, 10))


def test_transposed_and_grouped_convolutions() -> None:
    found = profile(ODD_NETWORKS["grouped_transposed"](0))
    conv = operator(found, "g")
    assert conv.kind is OperatorKind.TRANSPOSED_CONV
    assert conv.macs == 4 * 4 * 8 * 3 * 4
    assert conv.bias_count == 6


def test_recurrent_layer() -> None:
    lstm = operator(profile(ODD_NETWORKS["recurrent"](0)), "lstm")
    assert lstm.kind is OperatorKind.RECURRENT
    assert lstm.macs == 6 * (16 * 5 + 16 * 4)
    assert lstm.weight_count == 16 * 9


def test_product_of_two_activations() -> None:
    scores = operator(profile(ODD_NETWORKS["attention"](0)), "scores")
    assert scores.kind is OperatorKind.MATMUL
    assert scores.macs == 2 * 5 * 5 * 4
    assert scores.weight_count == 0
    assert scores.matrices == (2, 5, 5)


def test_products_with_one_matrix_are_one_of_more_rows() -> None:
    b = Builder()
    x = b.input("x", (3, 4, 5))
    square = b.constant("w", np.ones((4, 4), np.float32))
    y = b.node("y", "MatMul", [square, x])
    z = b.node("z", "MatMul", [y, b.node("turned", "Transpose", [x], perm=[0, 1, 3, 2])])
    mean = b.node("mean", "ReduceMean", [x], axes=[0, 1], keepdims=0)
    shared = b.node("shared", "MatMul", [z, mean])
    found = profile(b.model({shared: (3, 4, 5)}))
    assert operator(found, "y").matrices == (3, 4, 5)
    assert operator(found, "z").matrices == (3, 4, 4)
    assert operator(found, "shared").matrices == (1, 12, 5)
    assert operator(profile(ODD_NETWORKS["attention"](0)), "proj").matrices == ()


def test_a_first_axis_that_is_no_batch_counts() -> None:
    b = Builder()
    parted = b.node("parted", "Reshape", [b.input("x", (6, 8)), b.ints("shape", [3, 2, 8])])
    dense = b.node("dense", "MatMul", [parted, b.weight("w", (8, 4), fan_in=8)])
    weights = b.node("weights", "Softmax", [dense], axis=-1)
    joined = b.node("joined", "Reshape", [weights, b.ints("whole", [1, 6, 4])])
    found = profile(b.model({joined: (6, 4)}))
    assert np.prod(operator(found, "dense").out_size) == 6
    softmax = operator(found, "weights")
    assert softmax.in_channels * np.prod(softmax.in_size) == 24


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_weight_is_counted_once(name: str) -> None:
    model = NETWORKS[name](0)
    found = profile(model)
    stored = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type in {"Conv", "Gemm", "ConvTranspose"}]
    in_products = sum(stored[node.input[1]] for node in products)
    in_matmuls = sum(
        stored[n.input[1]] for n in model.graph.node if n.op_type == "MatMul" and n.name != "mix"
    )
    assert found.weight_count == in_products + in_matmuls


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(InvalidModelError):
        OnnxGraphInspector().profile(b"\x00\x01")
