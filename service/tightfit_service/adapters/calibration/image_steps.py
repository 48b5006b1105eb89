"""Operators behind an image that leave its shape as it was, and chains of them in turn.

They are elementwise arithmetic and functions, reductions, normalizations, movements of data, and resizing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from tightfit_service.adapters.calibration.chains import Maker
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.points import Point

Step = Callable[[GraphBuilder, str], str]
"""Adds operators behind a tensor of (channels, height, width) and returns one of the same shape."""
MOST_CHANNELS = 128
GROUPS = 4
"""Of channels; every count of them is a multiple of it."""
MOST_STEPS = 11
"""As many as `Point.layers` returns at most."""


def in_turn(*steps: Step, side: int = 48, most: int = MOST_STEPS) -> Maker:
    """Return chains of three of the steps, which change with every network.

    Sides are even and at most `side` pixels, channels a multiple of `GROUPS` and at most
    `MOST_CHANNELS`, so that every step can part them. `most` bounds the length of chains whose
    rounding to integers adds up.
    """

    def make(point: Point, seed: int) -> GraphBuilder:
        pixels = 2 * point.size(0, 2, side // 2)
        channels = GROUPS * point.size(1, 1, MOST_CHANNELS // GROUPS)
        builder = GraphBuilder((channels, pixels, pixels), seed=seed)
        for step in point.layers(steps)[-most:]:
            step(builder, builder.top)
        return builder

    return make


def two_operands(op_type: str) -> Step:
    """Return elementwise arithmetic of a tensor and its sigmoid, added to the tensor."""

    def step(builder: GraphBuilder, source: str) -> str:
        gate = builder.activation(source, "Sigmoid")
        if op_type == "Div":
            gate = builder.node("Add", [gate, builder.scalar(0.5)], builder.shapes[source])
        return builder.add(source, builder.node(op_type, [source, gate], builder.shapes[source]))

    return step


def one_operand(op_type: str) -> Step:
    """Return a function of the sigmoid, which is moved away from zero, added to the tensor."""

    def step(builder: GraphBuilder, source: str) -> str:
        shape = builder.shapes[source]
        positive = builder.activation(source, "Sigmoid")
        inner = builder.node("Add", [positive, builder.scalar(0.5)], shape)
        operands = [inner, builder.scalar(2.0)] if op_type == "Pow" else [inner]
        return builder.add(source, builder.node(op_type, operands, shape))

    return step


def reduced(op_type: str, axes: tuple[int, ...]) -> Step:
    """Return a gate from a reduction over axes, the batch being axis 0."""

    def step(builder: GraphBuilder, source: str) -> str:
        shape = builder.shapes[source]
        kept = tuple(1 if axis + 1 in axes else size for axis, size in enumerate(shape))
        if op_type == "ReduceSum":
            small = builder.node("Mul", [source, builder.scalar(0.01)], shape)
            found = builder.node(op_type, [small, builder.integers(*axes)], kept, keepdims=1)
        elif op_type.startswith("Global"):
            found = builder.node(op_type, [source], kept)
        else:
            found = builder.node(op_type, [source], kept, axes=list(axes), keepdims=1)
        return builder.multiply(source, builder.activation(found, "Sigmoid"))

    return step


def local_response_norm(builder: GraphBuilder, source: str) -> str:
    """Add LRN (A. Krizhevsky et al., NeurIPS 2012)."""
    return builder.node("LRN", [source], builder.shapes[source], size=5, alpha=1e-2)


def instance_norm(builder: GraphBuilder, source: str) -> str:
    """Add InstanceNormalization and an activation."""
    width = builder.shapes[source][0]
    scales = [builder.constant(np.ones(width, dtype=np.float32)), builder.bias(width)]
    normed = builder.node("InstanceNormalization", [source, *scales], builder.shapes[source])
    return builder.activation(normed, "Relu")


def group_norm(builder: GraphBuilder, source: str) -> str:
    """Add group normalization as torch writes it: an instance norm of another shape."""
    width, *size = shape = builder.shapes[source]
    flat = builder.reshape(source, (GROUPS, width // GROUPS * int(np.prod(size))))
    scales = [builder.constant(np.ones(GROUPS, dtype=np.float32)), builder.bias(GROUPS)]
    normed = builder.node("InstanceNormalization", [flat, *scales], builder.shapes[flat])
    back = builder.reshape(normed, shape)
    scaled = builder.node("Mul", [back, builder.weight((width, 1, 1), fan_in=2)], shape)
    return builder.node("Add", [scaled, builder.weight((width, 1, 1), fan_in=200)], shape)


def last_axis_norm(builder: GraphBuilder, source: str) -> str:
    """Add LayerNormalization over channels that are last meanwhile (Z. Liu et al., CVPR 2022)."""
    return builder.channels_first(builder.layer_norm(builder.channels_last(source)))


def spelled_norm(axis: int) -> Step:
    """Return layer normalization as exporters of older operator sets spell it, over one axis."""

    def step(builder: GraphBuilder, source: str) -> str:
        shape = builder.shapes[source]
        kept = tuple(1 if place + 1 == axis else size for place, size in enumerate(shape))
        mean = builder.node("ReduceMean", [source], kept, axes=[axis], keepdims=1)
        centred = builder.node("Sub", [source, mean], shape)
        square = builder.node("Pow", [centred, builder.scalar(2.0)], shape)
        variance = builder.node("ReduceMean", [square], kept, axes=[axis], keepdims=1)
        # far from zero, where a root in integers would be as coarse as its inverse is steep
        raised = builder.node("Add", [variance, builder.scalar(0.1)], kept)
        normed = builder.node("Div", [centred, builder.node("Sqrt", [raised], kept)], shape)
        sizes = tuple(size if place + 1 == axis else 1 for place, size in enumerate(shape))
        scaled = builder.node("Mul", [normed, builder.weight(sizes, fan_in=2)], shape)
        return builder.node("Add", [scaled, builder.weight(sizes, fan_in=200)], shape)

    return step


def shuffled(builder: GraphBuilder, source: str) -> str:
    """Add a shuffle of channels (X. Zhang et al., CVPR 2018)."""
    width, *size = shape = builder.shapes[source]
    parted = builder.reshape(source, (GROUPS, width // GROUPS, *size))
    turned = builder.node(
        "Transpose", [parted], (width // GROUPS, GROUPS, *size), perm=[0, 2, 1, 3, 4]
    )
    return builder.reshape(turned, shape)


def split(builder: GraphBuilder, source: str) -> str:
    """Add a split of channels whose parts are joined the other way round."""
    width, *size = builder.shapes[source]
    half = (width // 2, *size)
    sizes = builder.integers(width // 2, width // 2)
    first, second = builder.nodes("Split", [source, sizes], [half, half], axis=1)
    return builder.concat([builder.activation(second, "Relu"), first])


def sliced(builder: GraphBuilder, source: str) -> str:
    """Add the sum of both halves of the columns, and beside it the first half."""
    width, height, columns = builder.shapes[source]
    parts = [
        builder.node(
            "Slice",
            [source, *(builder.integers(value) for value in (start, start + columns // 2, 3))],
            (width, height, columns // 2),
        )
        for start in (0, columns // 2)
    ]
    total = builder.add(*parts)
    shape = (width, height, 2 * (columns // 2))
    return builder.node("Concat", [total, parts[0]], shape, axis=3)


def focused(builder: GraphBuilder, source: str) -> str:
    """Add a pointwise layer over every other pixel of both axes, and doublings of it (the stem of YOLOv5)."""
    width = builder.shapes[source][0]
    return builder.upsample(builder.conv(quartered(builder, source), width, kernel=1))


def quartered(builder: GraphBuilder, source: str) -> str:
    """Add four images of every other pixel, as channels."""
    return builder.concat(quarters(builder, source, axes=(2, 3)))


def quarters(builder: GraphBuilder, source: str, *, axes: tuple[int, int]) -> list[str]:
    """Add four images of every other pixel; the axes are those of height and width, the batch being 0."""
    sizes = [builder.shapes[source][axis - 1] for axis in axes]
    shape = tuple(
        size // 2 if place + 1 in axes else size
        for place, size in enumerate(builder.shapes[source])
    )
    return [
        builder.node(
            "Slice",
            [
                source,
                builder.integers(*start),
                builder.integers(*sizes),
                builder.integers(*axes),
                builder.integers(2, 2),
            ],
            shape,
        )
        for start in ((0, 0), (1, 0), (0, 1), (1, 1))
    ]


def gathered(builder: GraphBuilder, source: str) -> str:
    """Add a choice of channels, here all of them backwards."""
    width = builder.shapes[source][0]
    order = builder.integers(*range(width - 1, -1, -1))
    return builder.node("Gather", [source, order], builder.shapes[source], axis=1)


def padded(builder: GraphBuilder, source: str) -> str:
    """Add a border, and a pooling layer that takes it away."""
    width, height, columns = builder.shapes[source]
    amounts = builder.integers(0, 0, 1, 1, 0, 0, 1, 1)
    wide = builder.node("Pad", [source, amounts], (width, height + 2, columns + 2))
    return builder.pool(wide, kernel=3, stride=1, is_max=False)


def depth_to_space(builder: GraphBuilder, source: str) -> str:
    """Add pixels from channels, and channels from pixels by a pooling and a pointwise layer."""
    width, height, columns = builder.shapes[source]
    shape = (width // 4, 2 * height, 2 * columns)
    spread = builder.node("DepthToSpace", [source], shape, blocksize=2, mode="CRD")
    return builder.conv(builder.pool(spread), width, kernel=1)


def tiled(builder: GraphBuilder, source: str) -> str:
    """Add the mean of the image to every pixel, by copies of it."""
    width, height, columns = builder.shapes[source]
    mean = builder.node("GlobalAveragePool", [source], (width, 1, 1))
    counts = builder.integers(1, 1, height, columns)
    return builder.add(source, builder.node("Tile", [mean, counts], (width, height, columns)))


def expanded(builder: GraphBuilder, source: str) -> str:
    """Add the same by Expand."""
    width, height, columns = builder.shapes[source]
    mean = builder.node("GlobalAveragePool", [source], (width, 1, 1))
    wanted = builder.integers(1, 1, height, columns)
    return builder.add(source, builder.node("Expand", [mean, wanted], (width, height, columns)))


def resized(mode: str) -> Step:
    """Return a doubling of the image, by neighbours or lines, and a pooling layer."""

    def step(builder: GraphBuilder, source: str) -> str:
        if mode == "nearest":
            return builder.pool(builder.upsample(source))
        width, height, columns = builder.shapes[source]
        factors = builder.constant(np.array([1, 1, 2, 2], dtype=np.float32))
        shape = (width, 2 * height, 2 * columns)
        return builder.pool(builder.node("Resize", [source, "", factors], shape, mode=mode))

    return step


def chosen(builder: GraphBuilder, source: str) -> str:
    """Add ArgMax over channels, scaled to be small."""
    shape = builder.shapes[source]
    kept = (1, *shape[1:])
    place = builder.node("ArgMax", [source], kept, axis=1, keepdims=1)
    number = builder.node("Cast", [place], kept, to=TensorProto.FLOAT)
    small = builder.node("Mul", [number, builder.scalar(1e-3)], kept)
    return builder.node("Add", [source, small], shape)


MOVEMENTS: Sequence[Step] = (
    shuffled,
    split,
    sliced,
    focused,
    gathered,
    padded,
    depth_to_space,
    tiled,
)
"""Steps that move data."""
