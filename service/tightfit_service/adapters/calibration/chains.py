"""Chains of the layers that most networks are made of: they tell the kinds of layers apart."""

from __future__ import annotations

from collections.abc import Callable

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.points import Point

Maker = Callable[[Point, int], GraphBuilder]
"""Makes a network of a point and a seed of its weights."""


def conv_chain(kernel: int, stride: int) -> Maker:
    """Return chains of convolutions; the first has the stride."""

    def make(point: Point, seed: int) -> GraphBuilder:
        side = point.size(0, 4, 64)
        first, second = point.channels(1), point.channels(2)
        builder = GraphBuilder((first, side, side), seed=seed)
        for depth in range(point.depth()):
            width = first if depth % 2 else second
            builder.conv(builder.top, width, kernel=kernel, stride=stride if depth == 0 else 1)
            builder.activation(builder.top, "Relu")
        return builder

    return make


def wide_conv_chain(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions with large kernels; every other chain starts from an image of few channels."""
    side, width = point.size(0, 8, 64), point.channels(1, 4, 96)
    builder = GraphBuilder((point.turn((width, 1, width, 3)), side, side), seed=seed)
    for depth in range(point.choice(5, (1, 2, 3))):
        stride = point.turn((1, 2, 4)) if depth == 0 else 1
        builder.conv(builder.top, width, kernel=point.turn((5, 7, 9, 4)), stride=stride)
        builder.activation(builder.top, "Relu")
    return builder


def depthwise_chain(kernel: int, stride: int) -> Maker:
    """Return chains of depthwise convolutions; the first has the stride."""

    def make(point: Point, seed: int) -> GraphBuilder:
        side, width = point.size(0, 4, 64), point.channels(1, 8, 320)
        builder = GraphBuilder((width, side, side), seed=seed)
        for depth in range(point.depth()):
            builder.depthwise(builder.top, kernel=kernel, stride=stride if depth == 0 else 1)
            builder.activation(builder.top, "Relu6")
        return builder

    return make


def wide_depthwise_chain(point: Point, seed: int) -> GraphBuilder:
    """Return depthwise convolutions with large kernels."""
    return depthwise_chain(point.turn((5, 7)), point.turn((2, 1, 1)))(point, seed)


def grouped_chain(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions in 2 to 16 groups of several channels each."""
    side, groups = point.size(0, 4, 48), point.turn((2, 8, 4, 16))
    width = groups * point.size(1, 2, 16)
    builder = GraphBuilder((width, side, side), seed=seed)
    for _ in range(point.depth()):
        builder.conv(builder.top, width, kernel=point.turn((3, 3, 1)), groups=groups)
        builder.activation(builder.top, "Relu")
    return builder


def dilated_chain(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions with gaps in their kernels, over images and series by turns."""
    width = point.channels(1, 4, 64)
    extent = (point.size(0, 8, 48),) * 2 if point.number % 2 else (point.size(0, 32, 512),)
    builder = GraphBuilder((width, *extent), seed=seed)
    for depth in range(point.depth()):
        builder.conv(builder.top, width, dilation=2 ** (1 + depth % 3))
        builder.activation(builder.top, "Relu")
    return builder


def transposed_chain(point: Point, seed: int) -> GraphBuilder:
    """Return transposed convolutions, each with a pooling layer behind that halves the size again."""
    side, width = point.size(0, 4, 32), point.channels(1, 4, 96)
    builder = GraphBuilder((width, side, side), seed=seed)
    for _ in range(point.choice(5, (1, 2, 3))):
        inner = builder.transposed_conv(builder.top, width, kernel=point.turn((2, 4)))
        builder.pool(builder.activation(inner, "Relu"))
    return builder


def dense_chain(point: Point, seed: int) -> GraphBuilder:
    """Return chains of dense layers."""
    first, second = point.size(0, 8, 1024), point.size(1, 8, 1024)
    builder = GraphBuilder((first,), seed=seed)
    for depth in range(point.depth()):
        builder.dense(builder.top, first if depth % 2 else second)
        builder.activation(builder.top, "Relu")
    return builder


def pool_chain(point: Point, seed: int) -> GraphBuilder:
    """Return chains of pooling layers."""
    side, width = point.size(0, 8, 96), point.channels(1)
    builder = GraphBuilder((width, side, side), seed=seed)
    kernel, stride = point.choice(2, (2, 3)), point.choice(3, (1, 2))
    for depth in range(point.choice(5, (1, 2, 3, 4))):
        builder.pool(builder.top, kernel=kernel, stride=stride, is_max=depth % 2 == 0)
    builder.global_pool(builder.top)
    return builder


def concat_chain(point: Point, seed: int) -> GraphBuilder:
    """Return layers whose inputs are joined to their outputs."""
    side, width = point.size(0, 4, 32), point.channels(1, 4, 64)
    builder = GraphBuilder((width, side, side), seed=seed)
    for _ in range(point.choice(5, (1, 2, 3))):
        source = builder.top
        builder.concat([source, builder.conv(source, width, kernel=1)])
    return builder


def activation_chain(*kinds: str) -> Maker:
    """Return chains of three activations, each added to what it was applied to."""

    def make(point: Point, seed: int) -> GraphBuilder:
        side, width = point.size(0, 4, 64), point.channels(1)
        layers = point.layers(kinds)
        opset = 20 if "Gelu" in layers else 17
        builder = GraphBuilder((width, side, side), seed=seed, opset=opset)
        for kind in layers:
            source = builder.top
            builder.add(builder.activation(source, kind), source)
        return builder

    return make
