"""Networks of the families that edge teams use: they tell what layers cost among others."""

from __future__ import annotations

from collections.abc import Sequence

from tightfit_service.adapters.calibration.blocks import (
    Block,
    Form,
    encoder,
    gated_inverted,
    inverted,
    residual,
    separable,
)
from tightfit_service.adapters.calibration.chains import Maker
from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.image_steps import GROUPS
from tightfit_service.adapters.calibration.points import Point

ACTIVATIONS = (
    "Relu",
    "HardSwish",
    "Relu6",
    "Silu",
    "Relu",
    "SpelledHardSwish",
    "LeakyRelu",
)
"""What networks of blocks have between their convolutions, in turn."""
MOST_UNSHRUNK = 40
"""Pixels along the side of images whose size the stem of a network of blocks keeps."""


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


def residual_network(point: Point, seed: int) -> GraphBuilder:
    """Return residual blocks in stages of one width."""
    side, width = point.size(0, 16, 64), point.channels(1, 6, 48)
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width), "Relu")
    for stage in range(point.choice(2, (2, 3))):
        for block in range(point.choice(3, (1, 2, 3))):
            stride = 2 if stage and not block else 1
            residual(builder, builder.top, Form(width=width * 2**stage, stride=stride))
    return classified(builder, point)


def separable_network(point: Point, seed: int) -> GraphBuilder:
    """Return depthwise separable convolutions."""
    side, width = point.size(0, 16, 96), point.channels(1, 8, 48)
    builder = GraphBuilder((point.choice(2, (1, 3)), side, side), seed=seed)
    return _separated(builder, point, builder.top, width)


def channels_last(point: Point, seed: int) -> GraphBuilder:
    """Return the same with an input whose channels come last, as some exporters write it."""
    side, width = point.size(0, 16, 96), point.channels(1, 8, 48)
    builder = GraphBuilder((side, side, 3), seed=seed)
    return _separated(builder, point, builder.channels_first(builder.top), width)


def _separated(builder: GraphBuilder, point: Point, source: str, width: int) -> GraphBuilder:
    builder.activation(builder.conv(source, width, stride=2), "Relu6")
    for depth in range(point.choice(3, (3, 5, 7))):
        wide = min(width * 2 ** ((depth + 1) // 2), 256)
        stride = 2 if depth % 2 else 1
        separable(builder, builder.top, Form(width=wide, stride=stride, activation="Relu6"))
    return classified(builder, point)


def inverted_network(point: Point, seed: int) -> GraphBuilder:
    """Return inverted residuals, with and without gates."""
    side, width = point.size(0, 16, 96), point.channels(1, 8, 32)
    activation = ("Relu6", "HardSwish", "Silu")[point.choice(2, (0, 1, 2))]
    block = (inverted, gated_inverted)[point.choice(4, (0, 1))]
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.activation(builder.conv(builder.top, width, stride=2), activation)
    for depth in range(point.choice(3, (3, 5, 7))):
        narrow = builder.shapes[builder.top][0]
        stride = 2 if depth % 2 else 1
        form = Form(
            width=narrow if stride == 1 else min(width * (2 + depth // 2), 96),
            stride=stride,
            activation=activation,
            kernel=5 if depth % 3 == 2 else 3,
            expansion=point.choice(5, (3, 4, 6)),
        )
        block(builder, builder.top, form)
    return classified(builder, point)


def of_blocks(blocks: Sequence[Block]) -> Maker:
    """Return networks in two or three stages of one of the blocks, which change with every network."""

    def make(point: Point, seed: int) -> GraphBuilder:
        return _in_stages(point, seed, [point.turn(blocks)] * point.choice(2, (2, 3)))

    return make


def of_mixed_blocks(blocks: Sequence[Block]) -> Maker:
    """Return networks each of whose three stages is of another block."""

    def make(point: Point, seed: int) -> GraphBuilder:
        # a step that grows with every round through the blocks, so that each meets every other
        step = 1 + point.number // len(blocks)
        return _in_stages(
            point, seed, [blocks[(point.number + step * place) % len(blocks)] for place in range(3)]
        )

    return make


def _in_stages(point: Point, seed: int, stages: Sequence[Block]) -> GraphBuilder:
    """Return a stem, a stage of each block, the first at the stem's size, and a classifier."""
    side, width = 4 * point.size(0, 4, 24), GROUPS * point.size(1, 2, 12)
    activation = point.turn(ACTIVATIONS)
    builder = GraphBuilder((3, side, side), seed=seed)
    stem = builder.conv(builder.top, width, stride=2 if side > MOST_UNSHRUNK else 1)
    builder.activation(stem, activation)
    for stage, block in enumerate(stages):
        for depth in range(point.choice(3, (1, 2))):
            form = Form(
                width=width * 2**stage,
                stride=2 if stage and not depth else 1,
                activation=activation,
                kernel=point.choice(4, (3, 3, 5)),
            )
            block(builder, builder.top, form)
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


def causal(point: Point, seed: int) -> GraphBuilder:
    """Return residual blocks over a series that read the past in growing steps (S. Bai et al., 2018)."""
    length, width = point.size(0, 32, 320), point.channels(1, 8, 64)
    builder = GraphBuilder((point.size(2, 1, 16), length), seed=seed)
    for depth in range(point.choice(3, (2, 3, 4))):
        source, kernel = builder.top, point.choice(4, (2, 3, 5))
        for _ in range(2):
            inner = builder.conv(
                builder.top, width, kernel=kernel, dilation=2**depth, is_causal=True
            )
            builder.activation(inner, "Relu")
        inner = builder.top
        if builder.shapes[source] != builder.shapes[inner]:
            source = builder.conv(source, width, kernel=1)
        builder.activation(builder.add(inner, source), "Relu")
    return classified(builder, point)


def transformer(point: Point, seed: int) -> GraphBuilder:
    """Return encoders over patches of an image."""
    side, heads = point.size(0, 16, 48), point.choice(2, (2, 4))
    width = heads * point.size(1, 8, 32)
    activation = point.turn(("SpelledGelu", "Relu"))
    builder = GraphBuilder((3, side, side), seed=seed)
    builder.to_tokens(builder.conv(builder.top, width, kernel=4, stride=4))
    for _ in range(point.choice(3, (1, 2, 3))):
        encoder(builder, builder.top, heads=heads, activation=activation)
    builder.dense(builder.mean_token(builder.top), 10)
    return builder


def recurrent(point: Point, seed: int) -> GraphBuilder:
    """Return recurrent layers over frames, one way and both, and a dense layer on the last states.

    Few sequences are long: files for LiteRT have a copy of the layer per step.
    """
    steps, features = point.size(0, 4, 24), point.size(1, 6, 48)
    kind = point.turn(("LSTM", "GRU", "RNN"))
    builder = GraphBuilder((steps, features), seed=seed)
    for _ in range(point.choice(2, (1, 1, 2))):
        hidden = point.size(3, 12, 96)
        builder.recurrent(builder.top, kind, hidden, both_ways=point.number % 4 == 3)
    width = builder.shapes[builder.top][1]
    last = builder.node("Gather", [builder.top, builder.integer(steps - 1)], (width,), axis=1)
    builder.dense(last, point.size(4, 2, 40))
    return builder


def read_lines(point: Point, seed: int) -> GraphBuilder:
    """Return a recurrent layer over the columns that convolutions leave of an image (B. Shi et al., 2017)."""
    steps, width = point.size(0, 4, 16), point.channels(1, 8, 48)
    builder = GraphBuilder((1, 4 * point.size(2, 2, 8), 4 * steps), seed=seed)
    for depth in range(2):
        builder.activation(builder.conv(builder.top, width * (1 + depth)), "Relu")
        builder.pool(builder.top)
    channels, rows, columns = builder.shapes[builder.top]
    turned = builder.node("Transpose", [builder.top], (columns, channels, rows), perm=[0, 3, 1, 2])
    frames = builder.reshape(turned, (columns, channels * rows))
    hidden, kind = point.size(3, 12, 64), point.turn(("GRU", "LSTM", "RNN"))
    states = builder.recurrent(frames, kind, hidden, both_ways=point.number % 2 == 0)
    builder.softmax(builder.tokens_dense(states, point.size(4, 8, 60)))
    return builder


def classified(builder: GraphBuilder, point: Point) -> GraphBuilder:
    """Add a classifier of 2 to 100 classes."""
    builder.dense(builder.global_pool(builder.top), point.size(5, 2, 100))
    builder.softmax(builder.top)
    return builder
