"""Networks of tokens that are mixed by attention or by dense layers, as exporters of PyTorch write them."""

from __future__ import annotations

import math

from onnx import TensorProto

from tightfit_service.adapters.calibration.graph_builder import GraphBuilder
from tightfit_service.adapters.calibration.image_steps import quarters
from tightfit_service.adapters.calibration.points import Point

ACTIVATIONS = ("SpelledGelu", "Relu", "SpelledGelu", "SpelledTanhGelu", "Silu")
"""Between the dense layers of tokens, in turn."""
WINDOW = 4
"""Pixels along the side of windows within which tokens are mixed."""
PARTS = 3
"""Queries, keys and values, which one dense layer makes."""


def packed_transformer(point: Point, seed: int) -> GraphBuilder:
    """Return encoders whose queries, keys and values one dense layer makes, with a token for the class.

    By turns the three are told apart by Gather, Split or Slice, and normalized before or behind.
    """
    side, heads = point.size(0, 8, 48), point.choice(2, (1, 2, 3, 4))
    width, patch = heads * point.size(1, 8, 32), point.turn((4, 2, 4, 8))
    side = max(side // patch, 2) * patch
    builder = GraphBuilder((3, side, side), seed=seed)
    tokens = builder.to_tokens(builder.conv(builder.top, width, kernel=patch, stride=patch))
    if point.number % 3:
        tokens = _with_class_token(builder, tokens)
    tokens = _placed(builder, tokens)
    for _ in range(point.choice(3, (1, 2, 3, 4))):
        tokens = _layer(builder, tokens, point, heads=heads)
    if point.number % 3:
        first = builder.node("Gather", [tokens, builder.integer(0)], (width,), axis=1)
    else:
        first = builder.mean_token(tokens)
    builder.dense(first, point.size(5, 2, 100))
    return builder


def embedded_words(point: Point, seed: int) -> GraphBuilder:
    """Return words as rows of a table, mixed by encoders, convolutions, or not at all."""
    count, heads = point.size(0, 4, 96), point.choice(2, (1, 2, 4))
    width, words = heads * point.size(1, 8, 32), point.size(3, 64, 4096)
    builder = GraphBuilder((count,), seed=seed)
    scaled = builder.node("Mul", ["input", builder.scalar(words / 4)], (count,))
    bounds = [builder.scalar(0.0), builder.scalar(words - 1.0)]
    bounded = builder.node("Clip", [scaled, *bounds], (count,))
    places = builder.node("Cast", [bounded], (count,), to=TensorProto.INT64)
    table = builder.weight((words, width), fan_in=8)
    tokens = builder.node("Gather", [table, places], (count, width), axis=0)
    mixing = point.turn(("encoder", "none", "convolution"))
    for _ in range(point.choice(4, (1, 2))):
        if mixing == "encoder":
            tokens = _layer(builder, tokens, point, heads=heads)
        elif mixing == "convolution":
            turned = builder.node("Transpose", [tokens], (width, count), perm=[0, 2, 1])
            turned = builder.activation(builder.conv(turned, width, kernel=3), "Relu")
            tokens = builder.node("Transpose", [turned], (count, width), perm=[0, 2, 1])
    builder.dense(builder.mean_token(tokens), point.size(5, 2, 40))
    return builder


def mixed_tokens(point: Point, seed: int) -> GraphBuilder:
    """Return dense layers over tokens and over their widths by turns (I. Tolstikhin et al., NeurIPS 2021)."""
    side, width = 4 * point.size(0, 3, 12), point.channels(1, 8, 96)
    builder = GraphBuilder((3, side, side), seed=seed)
    tokens = builder.to_tokens(builder.conv(builder.top, width, kernel=4, stride=4))
    count = builder.shapes[tokens][0]
    activation = point.turn(ACTIVATIONS)
    for _ in range(point.choice(3, (1, 2, 3))):
        turned = builder.node(
            "Transpose", [builder.layer_norm(tokens)], (width, count), perm=[0, 2, 1]
        )
        inner = _dense_pair(builder, turned, point.size(2, 8, 128), activation)
        back = builder.node("Transpose", [inner], (count, width), perm=[0, 2, 1])
        tokens = builder.add(tokens, back)
        inner = _dense_pair(builder, builder.layer_norm(tokens), 2 * width, activation)
        tokens = builder.add(tokens, inner)
    builder.dense(builder.mean_token(tokens), point.size(5, 2, 100))
    return builder


def windowed_transformer(point: Point, seed: int) -> GraphBuilder:
    """Return attention within windows of an image, and pixels joined in between (Z. Liu et al., ICCV 2021)."""
    windows, heads = point.size(0, 1, 4), point.choice(2, (1, 2, 3))
    width = heads * point.size(1, 8, 24)
    side = 2 * WINDOW * windows
    builder = GraphBuilder((3, 2 * side, 2 * side), seed=seed)
    image = builder.channels_last(builder.conv(builder.top, width, kernel=2, stride=2))
    for stage in range(point.choice(3, (1, 2))):
        if stage:
            image = _joined_pixels(builder, image)
        for _ in range(point.choice(4, (1, 2))):
            image = _windowed_layer(builder, image, point, heads=heads)
    height, columns, last = builder.shapes[image]
    builder.dense(
        builder.mean_token(builder.reshape(image, (height * columns, last))), point.size(5, 2, 100)
    )
    return builder


def _layer(builder: GraphBuilder, source: str, point: Point, *, heads: int) -> str:
    """Add a layer of an encoder over (tokens, width), normalized before its halves or behind them."""
    activation = point.turn(ACTIVATIONS)
    wide = point.turn((4, 2, 3)) * builder.shapes[source][-1]
    if point.number % 2:
        mixed = builder.layer_norm(builder.add(source, _attention(builder, source, point, heads)))
        return builder.layer_norm(builder.add(mixed, _dense_pair(builder, mixed, wide, activation)))
    inner = _attention(builder, builder.layer_norm(source), point, heads)
    mixed = builder.add(source, inner)
    inner = _dense_pair(builder, builder.layer_norm(mixed), wide, activation)
    return builder.add(mixed, inner)


def _dense_pair(builder: GraphBuilder, source: str, wide: int, activation: str) -> str:
    inner = builder.activation(builder.tokens_dense(source, wide), activation)
    return builder.tokens_dense(inner, builder.shapes[source][-1])


def _attention(builder: GraphBuilder, source: str, point: Point, heads: int) -> str:
    """Add self-attention over the last two axes, (tokens, width); others are windows."""
    *windows, count, width = builder.shapes[source]
    part, many = width // heads, len(windows)
    builder.macs += 2 * math.prod(windows) * count * count * width
    found = _parted(builder, builder.tokens_dense(source, PARTS * width), point, heads)
    keys = builder.node(
        "Transpose",
        [found[1]],
        (*windows, heads, part, count),
        perm=[*range(many + 2), many + 3, many + 2],
    )
    shape = (*windows, heads, count, count)
    scores = builder.node("MatMul", [found[0], keys], shape)
    scaled = builder.node("Mul", [scores, builder.scalar(part**-0.5)], shape)
    mixed = builder.node(
        "MatMul", [builder.softmax(scaled), found[2]], (*windows, heads, count, part)
    )
    turned = builder.node(
        "Transpose",
        [mixed],
        (*windows, count, heads, part),
        perm=[*range(many + 1), many + 2, many + 1, many + 3],
    )
    return builder.tokens_dense(builder.reshape(turned, (*windows, count, width)), width)


def _parted(builder: GraphBuilder, packed: str, point: Point, heads: int) -> list[str]:
    """Return queries, keys and values, each (heads, tokens, part) behind the windows."""
    *windows, count, wide = builder.shapes[packed]
    width = wide // PARTS
    part, many = width // heads, len(windows)
    one = (*windows, heads, count, part)
    spelling = point.turn(("Gather", "Split", "Slice"))
    if spelling == "Gather":
        split = builder.reshape(packed, (*windows, count, PARTS, heads, part))
        # (batch, *windows, tokens, parts, heads, part): the parts come first
        order = [many + 2, *range(many + 1), many + 3, many + 1, many + 4]
        turned = builder.node("Transpose", [split], (PARTS, *one), perm=order)
        return [
            builder.node("Gather", [turned, builder.integer(place)], one, axis=0)
            for place in range(PARTS)
        ]
    if spelling == "Split":
        sizes = builder.integers(*[width] * PARTS)
        shapes = [(*windows, count, width)] * PARTS
        rows = builder.nodes("Split", [packed, sizes], shapes, axis=many + 2)
    else:
        rows = [
            builder.node(
                "Slice",
                [
                    packed,
                    builder.integers(place * width),
                    builder.integers((place + 1) * width),
                    builder.integers(many + 2),
                ],
                (*windows, count, width),
            )
            for place in range(PARTS)
        ]
    order = [*range(many + 1), many + 2, many + 1, many + 3]
    return [
        builder.node(
            "Transpose", [builder.reshape(row, (*windows, count, heads, part))], one, perm=order
        )
        for row in rows
    ]


def _with_class_token(builder: GraphBuilder, tokens: str) -> str:
    """Put a token before the others: a constant and a little of their mean, so that it has the batch's size."""
    count, width = builder.shapes[tokens]
    mean = builder.node("ReduceMean", [tokens], (1, width), axes=[1], keepdims=1)
    little = builder.node("Mul", [mean, builder.scalar(0.01)], (1, width))
    token = builder.node("Add", [little, builder.weight((1, width), fan_in=8)], (1, width))
    return builder.node("Concat", [token, tokens], (count + 1, width), axis=1)


def _placed(builder: GraphBuilder, tokens: str) -> str:
    """Add what tells the places of tokens apart."""
    shape = builder.shapes[tokens]
    return builder.node("Add", [tokens, builder.weight((1, *shape), fan_in=50)], shape)


def _windowed_layer(builder: GraphBuilder, image: str, point: Point, *, heads: int) -> str:
    """Add a layer of an encoder within each window of (height, columns, width)."""
    height, columns, width = shape = builder.shapes[image]
    down, across = height // WINDOW, columns // WINDOW
    parted = builder.reshape(image, (down, WINDOW, across, WINDOW, width))
    turned = builder.node(
        "Transpose", [parted], (down, across, WINDOW, WINDOW, width), perm=[0, 1, 3, 2, 4, 5]
    )
    tokens = builder.reshape(turned, (down * across, WINDOW * WINDOW, width))
    tokens = _layer(builder, tokens, point, heads=heads)
    parted = builder.reshape(tokens, (down, across, WINDOW, WINDOW, width))
    turned = builder.node(
        "Transpose", [parted], (down, WINDOW, across, WINDOW, width), perm=[0, 1, 3, 2, 4, 5]
    )
    return builder.reshape(turned, shape)


def _joined_pixels(builder: GraphBuilder, image: str) -> str:
    """Make one pixel of two by two, twice as wide."""
    parts = quarters(builder, image, axes=(1, 2))
    *size, width = builder.shapes[parts[0]]
    joined = builder.node("Concat", parts, (*size, len(parts) * width), axis=3)
    return builder.tokens_dense(builder.layer_norm(joined), 2 * width)
