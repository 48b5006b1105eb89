"""Networks of the families that edge teams use: they tell what layers cost among others."""

from __future__ import annotations

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.points import Point


def plain(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions and pooling layers, every other network with its image flattened at the end."""
    side, width = point.size(0, 16, 64), point.channels(1, 6, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    for depth in range(point.choice(3, (3, 4, 5, 6))):
        builder.conv(
            builder.top, min(width * (1 + depth // 2), 192), kernel=point.choice(4, (3, 5))
        )
        builder.activation(builder.top, "Relu")
        if depth % 2:
            builder.pool(builder.top)
    if point.number % 2:
        builder.dense(builder.flatten(builder.top), point.size(5, 2, 100))
        return builder
    return classified(builder, point)


def residual(point: Point, seed: int) -> GraphBuilder:
    """Return residual blocks (K. He et al., CVPR 2016)."""
    side, width = point.size(0, 16, 64), point.channels(1, 6, 48)
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width), "Relu")
    for stage in range(point.choice(2, (2, 3))):
        wide = width * 2**stage
        for block in range(point.choice(3, (1, 2, 3))):
            source, stride = builder.top, 2 if stage and not block else 1
            inner = builder.activation(builder.conv(source, wide, stride=stride), "Relu")
            inner = builder.conv(inner, wide)
            if builder.shapes[source] != builder.shapes[inner]:
                source = builder.conv(source, wide, kernel=1, stride=stride)
            builder.activation(builder.add(inner, source), "Relu")
    return classified(builder, point)


def separable(point: Point, seed: int) -> GraphBuilder:
    """Return depthwise separable convolutions (A. Howard et al., 2017)."""
    side, width = point.size(0, 16, 96), point.channels(1, 8, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width, stride=2), "Relu6")
    return classified(_separated(builder, point, width), point)


def channels_last(point: Point, seed: int) -> GraphBuilder:
    """Return the same with an input whose channels come last, as some exporters write it."""
    side, width = point.size(0, 16, 96), point.channels(1, 8, 48)
    builder = GraphBuilder((side, side, 3), seed=seed)
    turned = builder.node("Transpose", ["input"], (3, side, side), perm=[0, 3, 1, 2])
    builder.activation(builder.conv(turned, width, stride=2), "Relu6")
    return classified(_separated(builder, point, width), point)


def _separated(builder: GraphBuilder, point: Point, width: int) -> GraphBuilder:
    for depth in range(point.choice(3, (3, 5, 7))):
        stride = 2 if depth % 2 else 1
        wide = min(width * 2 ** ((depth + 1) // 2), 256)
        builder.activation(builder.depthwise(builder.top, stride=stride), "Relu6")
        builder.activation(builder.conv(builder.top, wide, kernel=1), "Relu6")
    return builder


def inverted(point: Point, seed: int) -> GraphBuilder:
    """Return inverted residuals, with and without gates (A. Howard et al., ICCV 2019)."""
    side, width = point.size(0, 16, 96), point.channels(1, 8, 32)
    activation = ("Relu6", "HardSwish", "Silu")[point.choice(2, (0, 1, 2))]
    gated = point.choice(4, (0, 1)) == 1
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width, stride=2), activation)
    for depth in range(point.choice(3, (3, 5, 7))):
        source = builder.top
        stride = 2 if depth % 2 else 1
        wide = builder.shapes[source][0] * point.choice(5, (3, 4, 6))
        inner = builder.activation(builder.conv(source, wide, kernel=1), activation)
        kernel = 5 if depth % 3 == 2 else 3
        inner = builder.depthwise(inner, kernel=kernel, stride=stride)
        inner = builder.activation(inner, activation)
        if gated:
            inner = builder.squeeze_excite(inner, max(wide // 4, 4))
        narrow = builder.shapes[source][0] if stride == 1 else min(width * (2 + depth // 2), 96)
        out = builder.conv(inner, narrow, kernel=1)
        if builder.shapes[out] == builder.shapes[source]:
            builder.add(out, source)
    return classified(builder, point)


def sequence(point: Point, seed: int) -> GraphBuilder:
    """Return convolutions over a series, every third time depthwise separable ones."""
    length, width = point.size(0, 32, 512), point.channels(1, 8, 96)
    is_separable = point.number % 3 == 2
    builder = GraphBuilder((point.size(2, 1, 16), length), seed=seed)
    for depth in range(point.choice(3, (2, 3, 4))):
        kernel = point.choice(4, (3, 5, 9))
        if is_separable and depth:
            builder.activation(builder.depthwise(builder.top, kernel=kernel), "Relu")
            kernel = 1
        builder.conv(builder.top, width * (1 + depth // 2), kernel=kernel)
        builder.activation(builder.top, "Relu")
        if depth % 2:
            builder.pool(builder.top)
    return classified(builder, point)


def transformer(point: Point, seed: int) -> GraphBuilder:
    """Return encoders over patches of an image (A. Dosovitskiy et al., ICLR 2021)."""
    side, heads = point.size(0, 16, 48), point.choice(2, (2, 4))
    width = heads * point.size(1, 8, 32)
    activation = point.turn(("SpelledGelu", "Relu"))
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.to_tokens(builder.conv(builder.top, width, kernel=4, stride=4))
    for _ in range(point.choice(3, (1, 2, 3))):
        source = builder.top
        mixed = builder.add(source, builder.attention(builder.layer_norm(source), heads=heads))
        inner = builder.tokens_dense(builder.layer_norm(mixed), 2 * width)
        builder.add(mixed, builder.tokens_dense(builder.activation(inner, activation), width))
    builder.dense(builder.mean_token(builder.top), 10)
    return builder


def recurrent(point: Point, seed: int) -> GraphBuilder:
    """Return recurrent layers over frames, one way and both, and a dense layer on the last states.

    Sequences are short: files for LiteRT have a copy of the layer per step.
    """
    steps, features = point.size(0, 4, 12), point.size(1, 6, 48)
    kind = point.turn(("LSTM", "GRU", "RNN"))
    builder = GraphBuilder((steps, features), seed=seed)
    for _ in range(point.choice(2, (1, 1, 2))):
        hidden = point.size(3, 12, 96)
        builder.recurrent(builder.top, kind, hidden, both_ways=point.number % 4 == 3)
    width = builder.shapes[builder.top][1]
    last = builder.node("Gather", [builder.top, builder.integer(steps - 1)], (width,), axis=1)
    builder.dense(last, point.size(4, 2, 40))
    return builder


def classified(builder: GraphBuilder, point: Point) -> GraphBuilder:
    """Add a classifier of 2 to 100 classes."""
    builder.dense(builder.global_pool(builder.top), point.size(5, 2, 100))
    builder.softmax(builder.top)
    return builder
