"""ONNX networks around rarely used operators and habits, and a generator of random networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto

from fakes.networks import Builder


def strided_channels(seed: int = 0) -> ModelProto:
    """Slices that pick every other channel, backwards ones and spatial ones at once, and a Gather."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 6, 6)), 3, 9)
    even = b.node(
        "even",
        "Slice",
        [x, b.ints("e.s", [0]), b.ints("e.e", [9]), b.ints("e.a", [1]), b.ints("e.t", [2])],
    )
    back = b.node(
        "back",
        "Slice",
        [
            x,
            b.ints("b.s", [-1, 0]),
            b.ints("b.e", [-100, 6]),
            b.ints("b.a", [-3, 2]),
            b.ints("b.t", [-2, 1]),
        ],
    )
    picked = b.node("picked", "Gather", [x, b.ints("p.i", [1, -1, 4, 1])], axis=1)
    x = b.node("join", "Concat", [even, back, picked], axis=1)
    x = b.conv("after", x, 14, 6)
    return b.model({b.head(x, 6): (5,)})


def cropped_channels(seed: int = 0) -> ModelProto:
    """A Pad with negative amounts, which crops channels on one side and adds on the other."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 6, 6)), 3, 8)
    x = b.node("crop", "Pad", [x, b.ints("crop.pads", [0, -3, 1, 1, 0, 2, 1, 1])])
    x = b.conv("after", x, 7, 6)
    return b.model({b.head(x, 6): (5,)})


def blocks_and_pixels(seed: int = 0) -> ModelProto:
    """SpaceToDepth and DepthToSpace in both orders, with convolutions between."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 8, 8)), 3, 4)
    x = b.node("deep", "SpaceToDepth", [x], blocksize=2)
    x = b.conv("middle", x, 16, 12)
    x = b.node("wide", "DepthToSpace", [x], blocksize=2, mode="DCR")
    x = b.conv("middle2", x, 3, 8)
    x = b.node("wide2", "DepthToSpace", [x], blocksize=2, mode="CRD")
    x = b.conv("last", x, 2, 6)
    return b.model({b.head(x, 6): (5,)})


def grouped_transposed(seed: int = 0) -> ModelProto:
    """ConvTranspose in groups and per channel, without biases."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 4, 4)), 3, 8)
    for name, shape, groups in (("g", (8, 3, 2, 2), 2), ("d", (6, 2, 2, 2), 6)):
        x = b.node(
            name,
            "ConvTranspose",
            [x, b.weight(f"{name}.w", shape, fan_in=4)],
            kernel_shape=[2, 2],
            strides=[2, 2],
            group=groups,
        )
        x = b.batch_norm(f"{name}.bn", x, shape[1] * groups)
    return b.model({b.head(x, 12): (5,)})


def sequence(seed: int = 0) -> ModelProto:
    """Convolutions over time, Squeeze and Unsqueeze, Tile, LayerNormalization, Where."""
    b = Builder(seed)
    x = b.input("input", (4, 12))
    x = b.node(
        "conv1",
        "Conv",
        [x, b.weight("conv1.w", (6, 4, 3), fan_in=12), b.vector("conv1.b", 6)],
        kernel_shape=[3],
        pads=[1, 1],
    )
    x = b.node("lift", "Unsqueeze", [x, b.ints("lift.axes", [2])])
    x = b.conv("conv2", x, 6, 8)
    x = b.node("drop", "Squeeze", [x, b.ints("drop.axes", [2])])
    x = b.node("twice", "Tile", [x, b.ints("twice.n", [1, 2, 1])])
    mask = b.constant("mask", b.rng.random((16, 1)) > 0.3, dtype=np.bool_)
    zeros = b.constant("zeros", np.zeros((1, 16, 12)), dtype=np.float32)
    x = b.node("where", "Where", [mask, x, zeros])
    x = b.node("swap", "Transpose", [x], perm=[0, 2, 1])
    x = b.node("dense", "MatMul", [x, b.weight("dense.w", (16, 10), fan_in=16)])
    x = b.node("dense.add", "Add", [b.vector("dense.b", 10), x])
    y = b.node("norm", "LayerNormalization", [x, b.vector("n.s", 10, low=0.5, high=1.5)], axis=-1)
    y = b.node(
        "up.tanh", "Tanh", [b.node("up", "MatMul", [y, b.weight("up.w", (10, 7), fan_in=9)])]
    )
    y = b.node("down", "MatMul", [y, b.weight("down.w", (7, 10), fan_in=7)])
    x = b.node("res", "Add", [x, y])
    x = b.node("mean", "ReduceMean", [x], axes=[1], keepdims=0)
    return b.model({b.gemm("fc", x, 10, 3): (3,)})


def attention(seed: int = 0) -> ModelProto:
    """One self-attention layer with two heads."""
    b = Builder(seed)
    x = b.input("input", (5, 8))
    heads = {}
    for name in ("q", "k", "v"):
        y = b.node(name, "MatMul", [x, b.weight(f"{name}.w", (8, 8), fan_in=8)])
        y = b.node(f"{name}.heads", "Reshape", [y, b.ints(f"{name}.shape", [0, 5, 2, 4])])
        order = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        heads[name] = b.node(f"{name}.swap", "Transpose", [y], perm=order)
    scores = b.node("scores", "MatMul", [heads["q"], heads["k"]])
    weights = b.node("weights", "Softmax", [scores], axis=-1)
    y = b.node("mixed", "MatMul", [weights, heads["v"]])
    y = b.node("back", "Transpose", [y], perm=[0, 2, 1, 3])
    y = b.node("merge", "Reshape", [y, b.ints("merge.shape", [0, 5, 8])])
    y = b.node("proj", "MatMul", [y, b.weight("proj.w", (8, 6), fan_in=8)])
    y = b.node("proj.relu", "Relu", [y])
    x = b.node("mean", "ReduceMean", [y], axes=[1], keepdims=0)
    return b.model({b.gemm("fc", x, 6, 3): (3,)})


def recurrent(seed: int = 0) -> ModelProto:
    """Convolution, then an LSTM over time, then dense layers."""
    b = Builder(seed)
    x = b.input("input", (4, 6))
    x = b.node("conv", "Conv", [x, b.weight("conv.w", (5, 4, 1), fan_in=4)], kernel_shape=[1])
    x = b.node("time", "Transpose", [x], perm=[2, 0, 1])
    w = b.weight("lstm.w", (1, 16, 5), fan_in=5)
    r = b.weight("lstm.r", (1, 16, 4), fan_in=4)
    b.node("lstm", "LSTM", [x, w, r], outputs=2, hidden_size=4)
    x = b.node("last", "Squeeze", ["lstm_out1", b.ints("last.axes", [0])])
    x = b.node("fc1.relu", "Relu", [b.gemm("fc1", x, 4, 6)])
    return b.model({b.gemm("fc2", x, 6, 3): (3,)})


def shared_weights(seed: int = 0) -> ModelProto:
    """Two branches with the very same weights (siamese), and a bias shared by two layers."""
    b = Builder(seed)
    weight = b.weight("shared.w", (6, 3, 3, 3), fan_in=27)
    bias = b.vector("shared.b", 6)
    branches = []
    for name in ("left", "right"):
        x = b.input(name, (3, 6, 6))
        x = b.node(f"{name}.conv", "Conv", [x, weight, bias], kernel_shape=[3, 3], pads=[1] * 4)
        branches.append(b.node(f"{name}.relu", "Relu", [x]))
    x = b.node("join", "Concat", branches, axis=1)
    point = b.weight("mix.w", (6, 12, 1, 1), fan_in=12)
    x = b.node("mix", "Conv", [x, point, bias], kernel_shape=[1, 1])
    return b.model({b.head(x, 6): (5,)})


def half_shared_weight(seed: int = 0) -> ModelProto:
    """A weight that a convolution uses and an operator without a rule reads as a whole."""
    b = Builder(seed)
    x = b.input("input", (3, 4, 4))
    weight = b.weight("w", (4, 3, 1, 1), fan_in=3)
    x = b.node("conv", "Conv", [x, weight], kernel_shape=[1, 1])
    total = b.node("norm", "ReduceL2", [weight], keepdims=0)
    x = b.node("scaled", "Div", [x, total])
    return b.model({b.head(x, 4): (5,)})


def constant_channels(seed: int = 0) -> ModelProto:
    """Constant channels concatenated (coordinates), a constant added that is wider than the tensor."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 4, 4)), 3, 5)
    one = b.conv("one", x, 5, 1, relu=False)
    spread = b.node("spread", "Add", [one, b.weight("spread.v", (1, 4, 1, 1), fan_in=2)])
    x = b.node("join", "Concat", [x, spread], axis=1)
    first = b.node("first", "Gather", [x, b.constant("zero", 0, dtype=np.int64)], axis=1)
    x = b.conv("after", x, 9, 6)
    x = b.node("plus", "Add", [x, b.node("lift", "Unsqueeze", [first, b.ints("lift.a", [1])])])
    return b.model({b.head(x, 6): (5,)})


def spelt_sizes(seed: int = 0) -> ModelProto:
    """Resize by sizes, Expand to a shape, Split in equal parts, Reshape with every size spelt out."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 4, 4)), 3, 6)
    x = b.node("grow", "Resize", [x, "", "", b.ints("sizes", [1, 6, 8, 8])], mode="nearest")
    gate = b.node("pool", "GlobalAveragePool", [x])
    gate = b.node("spread", "Expand", [gate, b.ints("spread.shape", [1, 6, 8, 8])])
    x = b.node("gated", "Mul", [x, gate])
    b.node("halves", "Split", [x], outputs=2, axis=1)
    x = b.node("sum", "Max", ["halves_out0", "halves_out1"])
    x = b.conv("last", x, 3, 6, stride=2)
    x = b.node("flat", "Reshape", [x, b.ints("flat.shape", [1, 96])])
    return b.model({b.gemm("fc", x, 96, 5): (5,)})


def batch_in_channels(seed: int = 0) -> ModelProto:
    """A reshape that folds the batch into the channels: nothing of it can be pruned."""
    b = Builder(seed)
    x = b.conv("stem", b.input("input", (3, 4, 4)), 3, 6)
    x = b.node("fold", "Reshape", [x, b.ints("fold.shape", [-1, 16])])
    x = b.node("fc1", "Gemm", [x, b.weight("fc1.w", (16, 8), fan_in=16)])
    x = b.node("unfold", "Reshape", [x, b.ints("unfold.shape", [-1, 48])])
    return b.model({b.gemm("fc", x, 48, 3): (3,)})


ODD_NETWORKS: dict[str, Callable[[int], ModelProto]] = {
    network.__name__: network
    for network in (
        strided_channels,
        cropped_channels,
        blocks_and_pixels,
        grouped_transposed,
        sequence,
        attention,
        recurrent,
        shared_weights,
        half_shared_weight,
        constant_channels,
        batch_in_channels,
    )
}


def random_network(seed: int) -> ModelProto:
    """Return a random network of eight blocks: products, joins, slices, pads, shuffles."""
    b = Builder(seed)
    x, channels = b.input("input", (3, 4, 4)), 3
    x = b.conv("stem", x, channels, 6)
    earlier = [(x, 6)]
    channels = 6
    for index in range(8):
        block = BLOCKS[int(b.rng.integers(len(BLOCKS)))]
        x, channels = block(b, f"n{index}", x, channels, earlier)
        earlier.append((x, channels))
    return b.model({b.head(x, channels): (5,)})


Block = Callable[[Builder, str, str, int, list[tuple[str, int]]], tuple[str, int]]


def _conv(b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]) -> tuple[str, int]:
    out = int(b.rng.integers(2, 9))
    return b.conv(name, x, c, out, kernel=1, norm=bool(b.rng.integers(2))), out


def _depthwise(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    return b.conv(name, x, c, c, groups=c), c


def _grouped(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    groups = 2 if c % 2 == 0 else 1
    return b.conv(name, x, c, 4 * groups, groups=groups, kernel=1), 4 * groups


def _residual(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    other, wide = earlier[int(b.rng.integers(len(earlier)))]
    if wide < c:
        front = int(b.rng.integers(c - wide + 1))
        pads = b.ints(f"{name}.pads", [0, front, 0, 0, 0, c - wide - front, 0, 0])
        other = b.node(f"{name}.pad", "Pad", [other, pads])
    elif wide > c:
        start = int(b.rng.integers(wide - c + 1))
        bounds = [b.ints(f"{name}.{k}", [v]) for k, v in (("s", start), ("e", start + c), ("a", 1))]
        other = b.node(f"{name}.slice", "Slice", [other, *bounds])
    return b.node(name, str(b.rng.choice(["Add", "Mul", "Max"])), [x, other]), c


def _concat(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    other, more = earlier[int(b.rng.integers(len(earlier)))]
    return b.node(name, "Concat", [x, other], axis=1), c + more


def _shuffle(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    order = b.rng.permutation(c).tolist()
    return b.node(name, "Gather", [x, b.ints(f"{name}.order", order)], axis=1), c


def _excite(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    pooled = b.node(f"{name}.pool", "GlobalAveragePool", [x])
    gate = b.conv(f"{name}.up", b.conv(f"{name}.down", pooled, c, 2, kernel=1), 2, c, kernel=1)
    return b.node(name, "Mul", [x, gate]), c


def _through_last(
    b: Builder, name: str, x: str, c: int, earlier: list[tuple[str, int]]
) -> tuple[str, int]:
    y = b.node(f"{name}.nhwc", "Transpose", [x], perm=[0, 2, 3, 1])
    y = b.node(f"{name}.rows", "Reshape", [y, b.ints(f"{name}.shape", [0, 16, c])])
    y = b.node(f"{name}.mm", "MatMul", [y, b.weight(f"{name}.w", (c, 5), fan_in=c)])
    y = b.node(f"{name}.grid", "Reshape", [y, b.ints(f"{name}.grid.shape", [0, 4, 4, 5])])
    return b.node(name, "Transpose", [y], perm=[0, 3, 1, 2]), 5


BLOCKS: list[Block] = [
    _conv,
    _conv,
    _depthwise,
    _grouped,
    _residual,
    _residual,
    _concat,
    _shuffle,
    _excite,
    _through_last,
]
