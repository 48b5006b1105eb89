"""Small seeded ONNX networks of many architectures, built in code.

Every function returns a checked `onnx.ModelProto` with a free batch named "batch"; `NETWORKS` lists
those that the passes must handle. Weights are random but scaled so that activations stay near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 17
Shape = tuple[int, ...]


class Builder:
    """Collects nodes and initializers; every method adds a node and returns its output's name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.inputs: list[ValueInfoProto] = []

    def input(self, name: str, shape: Shape, *, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, ["batch", *shape]))
        return name

    def constant(self, name: str, value: npt.ArrayLike, *, dtype: Any = None) -> str:
        self.constants[name] = np.asarray(value, dtype=dtype)
        return name

    def ints(self, name: str, values: Sequence[int]) -> str:
        return self.constant(name, list(values), dtype=np.int64)

    def node(
        self, name: str, op_type: str, inputs: Sequence[str], *, outputs: int = 1, **attributes: Any
    ) -> str:
        names = [f"{name}_out"] if outputs == 1 else [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, name=name, **attributes))
        return names[0]

    def weight(self, name: str, shape: Shape, *, fan_in: int) -> str:
        value = self.rng.normal(0.0, (2.0 / fan_in) ** 0.5, shape)
        return self.constant(name, value, dtype=np.float32)

    def vector(self, name: str, size: int, *, low: float = -0.3, high: float = 0.3) -> str:
        return self.constant(name, self.rng.uniform(low, high, size), dtype=np.float32)

    def conv(
        self,
        name: str,
        source: str,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        relu: bool = True,
        norm: bool = False,
    ) -> str:
        """A padded convolution, optionally followed by BatchNormalization and Relu."""
        shape = (out_channels, in_channels // groups, kernel, kernel)
        inputs = [source, self.weight(f"{name}.w", shape, fan_in=int(np.prod(shape[1:])))]
        if bias:
            inputs.append(self.vector(f"{name}.b", out_channels))
        out = self.node(
            name,
            "Conv",
            inputs,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=groups,
        )
        if norm:
            out = self.batch_norm(f"{name}.bn", out, out_channels)
        return self.node(f"{name}.relu", "Relu", [out]) if relu else out

    def batch_norm(self, name: str, source: str, channels: int) -> str:
        parameters = [
            self.vector(f"{name}.gamma", channels, low=0.5, high=1.5),
            self.vector(f"{name}.beta", channels),
            self.vector(f"{name}.mean", channels),
            self.vector(f"{name}.var", channels, low=0.5, high=1.5),
        ]
        return self.node(name, "BatchNormalization", [source, *parameters], epsilon=1e-5)

    def gemm(self, name: str, source: str, in_features: int, out_features: int) -> str:
        weight = self.weight(f"{name}.w", (out_features, in_features), fan_in=in_features)
        bias = self.vector(f"{name}.b", out_features)
        return self.node(name, "Gemm", [source, weight, bias], transB=1)

    def head(self, source: str, channels: int, classes: int = 5) -> str:
        """Global average pooling, flattening and a classifier."""
        pooled = self.node("gap", "GlobalAveragePool", [source])
        flat = self.node("flat", "Flatten", [pooled], axis=1)
        return self.gemm("fc", flat, channels, classes)

    def model(self, outputs: dict[str, Shape], *, opset: int = OPSET) -> ModelProto:
        """Close the graph over the named outputs (shapes without the batch) and check it."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            self.inputs,
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
                for name, shape in outputs.items()
            ],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=8,
            producer_name="networks",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def plain_cnn(seed: int = 0) -> ModelProto:
    """Convolutions with BatchNormalization, pooling, flatten over 4 x 4 positions, two dense layers."""
    b = Builder(seed)
    x = b.input("input", (3, 8, 8))
    x = b.conv("conv1", x, 3, 8, norm=True, bias=False)
    x = b.conv("conv2", x, 8, 12)
    x = b.node("pool", "MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("flat", "Flatten", [x], axis=1)
    x = b.node("fc1.relu", "Relu", [b.gemm("fc1", x, 12 * 16, 10)])
    x = b.gemm("fc2", x, 10, 4)
    x = b.node("prob", "Softmax", [x], axis=-1)
    return b.model({x: (4,)})


def mlp(seed: int = 0) -> ModelProto:
    """Dense layers on a vector: Gemm, then MatMul with a separate Add, transB on and off."""
    b = Builder(seed)
    x = b.input("input", (6,))
    x = b.node("fc1.relu", "Relu", [b.gemm("fc1", x, 6, 12)])
    x = b.node("fc2", "MatMul", [x, b.weight("fc2.w", (12, 9), fan_in=12)])
    x = b.node("fc2.add", "Add", [x, b.vector("fc2.b", 9)])
    x = b.node("fc2.tanh", "Tanh", [x])
    x = b.node("fc3", "Gemm", [x, b.weight("fc3.w", (9, 3), fan_in=9), b.vector("fc3.b", 3)])
    return b.model({x: (3,)})


def residual(seed: int = 0) -> ModelProto:
    """Two stages of a ResNet; the second one's shortcut is a strided 1 x 1 convolution."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 8, norm=True)
    y = b.conv("a.conv1", x, 8, 6, norm=True)
    y = b.conv("a.conv2", y, 6, 8, norm=True, relu=False)
    x = b.node("a.relu", "Relu", [b.node("a.add", "Add", [y, x])])
    y = b.conv("b.conv1", x, 8, 10, stride=2)
    y = b.conv("b.conv2", y, 10, 12, relu=False)
    short = b.conv("b.down", x, 8, 12, kernel=1, stride=2, relu=False)
    x = b.node("b.relu", "Relu", [b.node("b.add", "Add", [short, y])])
    return b.model({b.head(x, 12): (5,)})


def padded_shortcut(seed: int = 0) -> ModelProto:
    """A CIFAR ResNet in small: shortcuts are a strided Slice and a Pad of the channels, twice."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 4, norm=True)
    channels = 4
    for stage in ("s1", "s2"):
        wide = channels * 2
        y = b.conv(f"{stage}.conv1", x, channels, wide, stride=2, norm=True)
        y = b.conv(f"{stage}.conv2", y, wide, wide, norm=True, relu=False)
        cut = b.node(
            f"{stage}.slice",
            "Slice",
            [
                x,
                b.ints(f"{stage}.starts", [0, 0]),
                b.ints(f"{stage}.ends", [99, 99]),
                b.ints(f"{stage}.axes", [2, 3]),
                b.ints(f"{stage}.steps", [2, 2]),
            ],
        )
        half = channels // 2
        pads = b.ints(f"{stage}.pads", [0, half, 0, 0, 0, half, 0, 0])
        short = b.node(f"{stage}.pad", "Pad", [cut, pads], mode="constant")
        x = b.node(f"{stage}.relu", "Relu", [b.node(f"{stage}.add", "Add", [y, short])])
        channels = wide
    return b.model({b.head(x, channels): (5,)})


def interleaved_pad(seed: int = 0) -> ModelProto:
    """Padded channels that meet those of two other tensors, so that no contiguous pad remains."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 6, 6)), 3, 4)
    pads = b.ints("pads", [0, 2, 0, 0, 0, 2, 0, 0])
    padded = b.node("pad", "Pad", [x, pads])
    y = b.conv("wide", x, 4, 8, relu=False)
    x = b.node("join", "Add", [padded, y])
    x = b.node("pick", "Gather", [x, b.ints("pick.indices", [7, 0, 2, 3, 5, 1, 4, 6])], axis=1)
    z = b.conv("other", x, 8, 8, relu=False)
    x = b.node("join2", "Mul", [x, z])
    return b.model({b.head(x, 8): (5,)})


def inception(seed: int = 0) -> ModelProto:
    """Parallel branches joined by Concat, as in Inception and SqueezeNet."""
    b = Builder(seed)
    x = b.conv("squeeze", b.input("input", (3, 8, 8)), 3, 6, kernel=1)
    one = b.conv("expand1", x, 6, 4, kernel=1)
    three = b.conv("expand3", x, 6, 5)
    pooled = b.node(
        "branch.pool", "MaxPool", [x], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]
    )
    x = b.node("concat", "Concat", [one, three, pooled], axis=1)
    x = b.conv("after", x, 15, 8, norm=True)
    return b.model({b.head(x, 8): (5,)})


def dense_block(seed: int = 0) -> ModelProto:
    """A DenseNet block: every layer reads the Concat of all before it, BatchNormalization first."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 4, relu=False)
    channels = 4
    for index in range(3):
        y = b.batch_norm(f"l{index}.bn", x, channels)
        y = b.node(f"l{index}.relu", "Relu", [y])
        y = b.conv(f"l{index}.conv", y, channels, 3, relu=False)
        x = b.node(f"l{index}.concat", "Concat", [x, y], axis=1)
        channels += 3
    return b.model({b.head(x, channels): (5,)})


def depthwise(seed: int = 0) -> ModelProto:
    """Depthwise separable convolutions with Clip (ReLU6), an inverted residual, and a multiplier of 2."""
    b = Builder(seed)
    low = b.constant("zero", 0.0, dtype=np.float32)
    high = b.constant("six", 6.0, dtype=np.float32)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 6, relu=False)
    x = b.node("stem.clip", "Clip", [x, low, high])
    y = b.conv("expand", x, 6, 12, kernel=1, relu=False, norm=True)
    y = b.node("expand.clip", "Clip", [y, low, high])
    y = b.conv("dw", y, 12, 12, groups=12, relu=False, norm=True)
    y = b.node("dw.clip", "Clip", [y, low, high])
    y = b.conv("project", y, 12, 6, kernel=1, relu=False, norm=True)
    x = b.node("add", "Add", [x, y])
    x = b.conv("dw2", x, 6, 12, groups=6, stride=2)
    x = b.conv("point", x, 12, 8, kernel=1)
    return b.model({b.head(x, 8): (5,)})


def channel_shuffle(seed: int = 0) -> ModelProto:
    """Grouped convolutions with a channel shuffle between them, as in ShuffleNet."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 12)
    x = b.conv("group1", x, 12, 12, kernel=1, groups=2)
    x = b.node("split", "Reshape", [x, b.ints("split.shape", [0, 2, 6, 8, 8])])
    x = b.node("swap", "Transpose", [x], perm=[0, 2, 1, 3, 4])
    x = b.node("merge", "Reshape", [x, b.ints("merge.shape", [0, 12, 8, 8])])
    x = b.conv("dw", x, 12, 12, groups=12)
    x = b.conv("group2", x, 12, 6, kernel=1, groups=2)
    return b.model({b.head(x, 6): (5,)})


def split_branches(seed: int = 0) -> ModelProto:
    """Channels divided by Split, one part convolved, joined again (ShuffleNet V2, CSP)."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 10)
    b.node("split", "Split", [x, b.ints("split.sizes", [4, 6])], outputs=2, axis=1)
    y = b.conv("branch", "split_out1", 6, 6)
    x = b.node("concat", "Concat", ["split_out0", y], axis=1)
    x = b.conv("mix", x, 10, 8, kernel=1)
    return b.model({b.head(x, 8): (5,)})


def squeeze_excite(seed: int = 0) -> ModelProto:
    """A squeeze-and-excitation block with HardSigmoid, and HardSwish activations."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 8, relu=False)
    x = b.node("stem.act", "HardSwish", [x])
    s = b.node("se.pool", "ReduceMean", [x], axes=[2, 3], keepdims=1)
    s = b.conv("se.down", s, 8, 3, kernel=1)
    s = b.conv("se.up", s, 3, 8, kernel=1, relu=False)
    s = b.node("se.gate", "HardSigmoid", [s], alpha=1 / 6, beta=0.5)
    x = b.node("se.scale", "Mul", [x, s])
    x = b.conv("last", x, 8, 6, kernel=1)
    return b.model({b.head(x, 6): (5,)})


def channels_last_head(seed: int = 0) -> ModelProto:
    """Transpose to NHWC and Reshape before the dense layer, as converters from TFLite write it."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 6, 6)), 3, 6)
    x = b.conv("conv2", x, 6, 4, stride=2)
    x = b.node("nhwc", "Transpose", [x], perm=[0, 2, 3, 1])
    x = b.node("reshape", "Reshape", [x, b.ints("reshape.shape", [-1, 36])])
    x = b.gemm("fc", x, 36, 5)
    x = b.node("prob", "Softmax", [x], axis=-1)
    return b.model({x: (5,)})


def several_outputs(seed: int = 0) -> ModelProto:
    """Two inputs and two outputs; one of the outputs is a feature map that others read too."""
    b = Builder(seed)
    image = b.conv("conv1", b.input("image", (3, 6, 6)), 3, 6)
    other = b.conv("conv2", b.input("other", (1, 6, 6)), 1, 6)
    x = b.node("sum", "Add", [image, other])
    feature = b.conv("feature", x, 6, 4)
    x = b.conv("last", feature, 4, 8)
    return b.model({b.head(x, 8): (5,), feature: (4, 6, 6)})


def unknown_operator(seed: int = 0) -> ModelProto:
    """An LRN, which mixes neighbouring channels, between convolutions: its channels are frozen."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 6, 6)), 3, 6)
    x = b.conv("conv2", x, 6, 8)
    x = b.node("lrn", "LRN", [x], size=3)
    x = b.conv("conv3", x, 8, 6)
    return b.model({b.head(x, 6): (5,)})


def constant_arithmetic(seed: int = 0) -> ModelProto:
    """Per-channel constants in Add, Mul, Sub and PRelu; a scalar; biases as separate nodes."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 6, 6)), 3, 7, bias=False, relu=False)
    x = b.node("bias", "Add", [x, b.weight("bias.v", (7, 1, 1), fan_in=2)])
    x = b.node("scale", "Mul", [b.weight("scale.v", (1, 7, 1, 1), fan_in=2), x])
    x = b.node("half", "Div", [x, b.constant("two", 2.0, dtype=np.float32)])
    x = b.node("prelu", "PRelu", [x, b.weight("prelu.v", (7, 1, 1), fan_in=8)])
    x = b.conv("conv2", x, 7, 6, relu=False)
    x = b.node("inorm", "InstanceNormalization", [x, b.vector("i.s", 6), b.vector("i.b", 6)])
    x = b.node("leaky", "LeakyRelu", [x], alpha=0.1)
    return b.model({b.head(x, 6): (5,)})


def upsampling(seed: int = 0) -> ModelProto:
    """An encoder and decoder: ConvTranspose, Resize and a skip connection; the output is an image."""
    b = Builder(seed)
    top = b.conv("enc1", b.input("input", (2, 8, 8)), 2, 6)
    x = b.conv("enc2", top, 6, 8, stride=2)
    weight = b.weight("up.w", (8, 5, 2, 2), fan_in=8)
    x = b.node(
        "up", "ConvTranspose", [x, weight, b.vector("up.b", 5)], kernel_shape=[2, 2], strides=[2, 2]
    )
    x = b.node("up.relu", "Relu", [x])
    small = b.node("down", "AveragePool", [top], kernel_shape=[2, 2], strides=[2, 2])
    scales = b.constant("scales", [1.0, 1.0, 2.0, 2.0], dtype=np.float32)
    grown = b.node("grow", "Resize", [small, "", scales], mode="nearest")
    x = b.node("skip", "Concat", [x, grown], axis=1)
    x = b.conv("out", x, 11, 2, relu=False)
    return b.model({x: (2, 8, 8)})


def token_attention(seed: int = 0) -> ModelProto:
    """Two heads of attention over six tokens of 8, then the mean over tokens and a classifier."""
    b = Builder(seed)
    x = b.input("input", (6, 8))
    heads = b.ints("heads", [0, 6, 2, 4])
    ends = []
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        found = b.node(part, "MatMul", [x, b.weight(f"{part}.w", (8, 8), fan_in=8)])
        split = b.node(f"{part}.split", "Reshape", [found, heads])
        ends.append(b.node(f"{part}.heads", "Transpose", [split], perm=order))
    scores = b.node("scores", "MatMul", ends[:2])
    shares = b.node("shares", "Softmax", [scores], axis=-1)
    mixed = b.node("mixed", "MatMul", [shares, ends[2]])
    turned = b.node("turned", "Transpose", [mixed], perm=[0, 2, 1, 3])
    joined = b.node("joined", "Reshape", [turned, b.ints("tokens", [0, 6, 8])])
    pooled = b.node("pooled", "ReduceMean", [joined], axes=[1], keepdims=0)
    return b.model({b.gemm("fc", pooled, 8, 5): (5,)})


def spatial_attention(seed: int = 0) -> ModelProto:
    """A one-channel map that scales all channels, and a dense layer over positions (tokens)."""
    b = Builder(seed)
    x = b.conv("conv1", b.input("input", (3, 4, 4)), 3, 6)
    gate = b.node("gate.sigmoid", "Sigmoid", [b.conv("gate", x, 6, 1, relu=False)])
    x = b.node("scale", "Mul", [x, gate])
    x = b.node("tokens", "Reshape", [x, b.ints("tokens.shape", [0, 6, 16])])
    x = b.node("mix", "MatMul", [x, b.weight("mix.w", (16, 16), fan_in=16)])
    x = b.node("swap", "Transpose", [x], perm=[0, 2, 1])
    x = b.node("dense", "MatMul", [x, b.weight("dense.w", (6, 8), fan_in=6)])
    x = b.node("mean", "ReduceMean", [x], axes=[1], keepdims=0)
    return b.model({b.gemm("fc", x, 8, 5): (5,)})


NETWORKS: dict[str, Callable[[int], ModelProto]] = {
    network.__name__: network
    for network in (
        plain_cnn,
        mlp,
        residual,
        padded_shortcut,
        interleaved_pad,
        inception,
        dense_block,
        depthwise,
        channel_shuffle,
        split_branches,
        squeeze_excite,
        channels_last_head,
        several_outputs,
        unknown_operator,
        constant_arithmetic,
        upsampling,
        spatial_attention,
    )
}


def random_inputs(
    model: ModelProto, *, batch: int = 2, seed: int = 0
) -> dict[str, npt.NDArray[np.float32]]:
    """Return seeded random inputs for a model, by input name."""
    rng = np.random.default_rng(seed)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.normal(size=[batch, *_fixed_sizes(value)]).astype(np.float32)
        for value in model.graph.input
        if value.name not in constants
    }


def _fixed_sizes(value: ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
